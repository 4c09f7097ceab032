"A secret beside the picture: what it costs to guess, where it is kept, and that nothing changes for who asks for none."
import hashlib, json, os, pickle, stat
from dataclasses import asdict
import numpy as np
import pytest, torch
from accelerate import Accelerator
from hypothesis import given, strategies as st
from PIL import Image
from privreid import deploy
from privreid.arms import ARM_FOLDERS, Arm
from privreid.boxes import protect_boxes
from privreid.bundles import export, from_run, info, packed, read_bundle
from privreid.checkpoint import Checkpoint
from privreid.cli import main
from privreid.codec import via_file
from privreid.config import Config, preset, read_config
from privreid.data import SyntheticPedestrians, to_float, to_uint8
from privreid.deploy import Anonymizer, Recovery, protect_folder, salt_of
from privreid.desensitize import Blur
from privreid.experiments import run_experiment
from privreid.export import export_onnx
from privreid.folder import write_json
from privreid.joint import Trainer
from privreid.keyed import KEYED, PAD_LEVELS, SCRYPT, TRIAL, PadReader, PadWriter, Salt, SignsReader, SignsWriter, draw_streams, generators_of, hide, new_salt, one_bit_off, unpadded, padded, read_salt, reveal, secret_for, secret_of, stream_of, streams, write_salt
from privreid.locks import passphrase_in
from privreid.pix2pix import PatchGAN, UNetGenerator
from privreid.records import load_arm, save_arm
from privreid.training import JointTraining, Supervision, agw_of
from privreid.tree import RECORD

SIZE = 64, 32
TINY = dict(ngf=4, ndf=4, batch=8, epochs=2, milestones=(), freeze_bn=0, freeze_reid_bn=0, people=10, test_people=4)
CHEAP = Salt('5a'*16, n=2**14)
each_way = pytest.mark.parametrize('way', KEYED[1:])

@pytest.fixture(scope='module')
def street(): return SyntheticPedestrians(train_ids=10, test_ids=4, distractors=2, size=SIZE).load()

@pytest.fixture(scope='module')
def fitted(street): return {way: trainer(way, street).fit() for way in KEYED}

def training(way, kind=JointTraining, **changes): return kind(preset('demo', keyed=way, **TINY|changes), 8, Accelerator(cpu=True))
def trainer(way, street, *callbacks, kind=JointTraining, **changes): return Trainer(training(way, kind, **changes), street.train[torch.arange(36)], Supervision(Blur()), callbacks)
def weights(t): return {k: v.clone() for k,v in t.nets.state_dict().items()}
def same(a, b): return a.keys()==b.keys() and all(torch.equal(v, b[k]) for k,v in a.items())
def pictures(n=3, seed=0): return torch.rand(n, 3, *SIZE, generator=torch.Generator().manual_seed(seed))*2-1
def secret(i=1): return hashlib.sha256(str(i).encode()).digest()

# --- off

class Before(JointTraining):
    "The step as it was before there were keys."
    def build(self):
        cfg = self.cfg
        return dict(G_X=UNetGenerator(cfg.size, cfg.ngf), G_Y=UNetGenerator(cfg.size, cfg.ngf), D_Y=PatchGAN(cfg.ndf), D_X=PatchGAN(cfg.ndf))
    def reseed(self, seed): pass
    def step(self, x, y, labels):
        with self.autocast(): p,r = self.generate(x)
        return self.step_D(x, y, p, r)|self.step_G(x, y, p, r, labels)
    def generate(self, x):
        p = self.nets['G_X'](x)
        return p, self.nets['G_Y'](via_file(p, self.cfg.through))

def test_off_is_as_before_to_the_bit(street, fitted):
    now,before = fitted[''], trainer('', street, kind=Before).fit()
    assert same(weights(now), weights(before)) and now.history==before.history
    assert all(type(now.nets[k]) is UNetGenerator for k in ('G_X', 'G_Y'))

def test_off_is_the_default_and_of_older_runs():
    assert Config().keyed=='' and preset('demo').keyed==''
    row = {k: v for k,v in preset('demo').__dict__.items() if k!='keyed'}
    assert read_config(row)==preset('demo')

# --- the secret

def test_scrypt_is_scrypt():
    "By the standard library, written out."
    s = new_salt()
    assert (s.n, s.r, s.p)==tuple(SCRYPT.values()) and 128*s.n*s.r>=2**25 and len({new_salt().salt for _ in range(8)})==8
    assert secret_of('word', CHEAP)==hashlib.scrypt(b'word', salt=bytes.fromhex('5a'*16), n=2**14, r=8, p=1, dklen=32)

def test_everything_counts_for_a_secret():
    a = secret_of('four horses', CHEAP)
    others = [secret_of('four horsés', CHEAP), secret_of('Four horses', CHEAP), secret_of('four horses', Salt('5b'*16, n=2**14)), secret_of('four horses', Salt('5a'*16, n=2**15)), secret_of('four horses', Salt('5a'*16, n=2**14, p=2))]
    assert a==secret_of('four horses', CHEAP) and len({a, *others})==6
    assert secret_of('é', CHEAP)==secret_of('é', CHEAP)

@pytest.mark.parametrize('wrong', [dict(n=1), dict(n=2**13), dict(n=2**19), dict(n=2**40), dict(n=2**15+1), dict(n=2.**15), dict(r=1), dict(r=2**20), dict(p=0), dict(p=5), dict(salt=''), dict(salt='zz'*16), dict(salt=None)], ids=str)
def test_costs_are_bounded_before_anything_is_derived(wrong, monkeypatch, tmp_path, one_line):
    monkeypatch.setattr(hashlib, 'scrypt', lambda *a, **k: pytest.fail('derived'))
    with pytest.raises((ValueError, TypeError)) as e: Salt(**dict(salt='00'*16)|wrong)
    one_line(e.value)
    path = tmp_path/'salt.json'
    path.write_text(json.dumps(dict(format=1, what='salt', salt='00'*16, n=2**15, r=8, p=1)|wrong))
    with pytest.raises((ValueError, TypeError)) as e: secret_of('x', read_salt(path))
    one_line(e.value, 'salt.json')

def test_a_salt_stays(tmp_path, one_line):
    path = write_salt(s := new_salt(), tmp_path/'salt.json')
    assert read_salt(path)==s
    with pytest.raises(FileExistsError) as e: write_salt(new_salt(), path)
    one_line(e.value, path)
    assert read_salt(path)==s
    with pytest.raises(FileNotFoundError) as e: read_salt(tmp_path/'none')
    one_line(e.value, 'none')
    for text in ('', '[]', '{}', '{"format": 1}', path.read_text()[:-4], path.read_text().replace('"salt"', '"pepper"', 1)):
        path.write_text(text)
        with pytest.raises(ValueError) as e: read_salt(path)
        one_line(e.value, 'salt.json')

@pytest.mark.parametrize('phrase', ['', '  ', None, b'bytes', 7])
def test_a_phrase_is_text(phrase, one_line):
    with pytest.raises((ValueError, TypeError)) as e: secret_of(phrase, CHEAP)
    one_line(e.value, 'phrase')

@pytest.mark.parametrize('wrong', [b'', b'x'*31, 'x'*32, None, bytearray(32)], ids=repr)
def test_a_secret_is_32_bytes(wrong, one_line):
    for f in (lambda: secret_for(wrong, 'a'), lambda: stream_of(wrong, SIZE), lambda: one_bit_off(wrong, 0)):
        with pytest.raises(TypeError) as e: f()
        one_line(e.value, '32 bytes')

@given(st.binary(min_size=32, max_size=32), st.integers(0, 255), st.text(min_size=1, max_size=20))
def test_one_bit_is_half_of_everything(s, bit, label):
    other = one_bit_off(s, bit)
    assert bin(int.from_bytes(s, 'big')^int.from_bytes(other, 'big')).count('1')==1 and one_bit_off(other, bit)==s
    for a,b in ((stream_of(s, SIZE), stream_of(other, SIZE)), (stream_of(secret_for(s, label), SIZE), stream_of(secret_for(other, label), SIZE)), (stream_of(s, SIZE), stream_of(secret_for(s, label), SIZE))):
        share = ((a^b)[...,None]>>torch.arange(8)&1).float().mean()
        assert .47<share<.53

def test_streams_look_like_lots():
    a = stream_of(secret(), (256, 128))
    assert torch.equal(a, stream_of(secret(), (256, 128))) and a.shape==(3, 256, 128)
    counts = torch.bincount(a.flatten().long(), minlength=256)
    assert ((counts-384).float()/384**.5).square().mean()<1.5      # as chance has it
    assert torch.equal(streams([secret(1), secret(2)], SIZE), torch.stack([stream_of(secret(1), SIZE), stream_of(secret(2), SIZE)]))

# --- the generators

@each_way
@pytest.mark.parametrize('size', [(64, 32), (32, 32), (96, 64)], ids=str)
def test_shapes_and_range(way, size):
    torch.manual_seed(0)
    X,Y = (net.eval() for net in generators_of(way, size, 4))
    x = torch.rand(3, 3, *size)*2-1
    k = draw_streams(3, size, torch.Generator().manual_seed(1))
    with torch.no_grad():
        p = X(x, k); r = Y(p, k)
        assert p.shape==r.shape==x.shape and max(p.abs().max(), r.abs().max())<=1
        assert torch.equal(X(x, k), p) and not torch.equal(X(x, k.flip(0)), p) and not torch.equal(Y(p, k.flip(0)), r)
        assert torch.allclose(X(x[:1], k[:1]), p[:1], atol=1e-5) and torch.allclose(X(x, k[0]), X(x, k[:1].expand(3, -1, -1, -1)), atol=1e-6)

@each_way
def test_what_is_taken_is_in_no_state(way):
    X,_ = generators_of(way, SIZE, 4)
    plain = X.forget().state_dict().keys()
    X.take(stream_of(secret(), SIZE))
    assert X.state_dict().keys()==plain and not any('stream' in k for k in plain)
    Supervision(Blur()).upgrade(X)
    assert X.stream is not None
    teacher = Supervision(Blur()); teacher.upgrade(X)
    assert teacher.generator.stream is None                            # it shows what is seen without a secret

@each_way
def test_bad_streams(way, one_line):
    X,Y = (net.eval() for net in generators_of(way, SIZE, 4))
    x,k = pictures(), draw_streams(3, SIZE, torch.Generator())
    for net in (X, Y):
        for wrong,kind in ((k.float(), TypeError), (k[:,:2], TypeError), (k[...,:16], TypeError), (k[:2], ValueError), ('key', TypeError), (k[0,0], TypeError)):
            with pytest.raises(kind) as e: net(x, wrong)
            one_line(e.value, 'stream')
        with pytest.raises((ValueError, TypeError)): net(x[:,:,:32], k)

def test_without_a_secret_signs_write_nothing():
    "The mean over all keys, before the tanh."
    torch.manual_seed(0)
    X = SignsWriter(SIZE, 4).eval()
    x = pictures(1)
    with torch.no_grad():
        X.hides.weight.mul_(10); X.writes.weight.mul_(10)
        many = X(x.expand(256, -1, -1, -1), draw_streams(256, SIZE, torch.Generator().manual_seed(0))).atanh().mean(0)
        none = X(x).atanh()[0]
        one = X(x, stream_of(secret(), SIZE)).atanh()[0]
    assert (many-none).abs().mean()<.15*(one-none).abs().mean()

def by_hand(base, x, u):
    "One pixel."
    def level(v): return int(round((v+1)*127.5))
    return level(base)//8*8+(level(x)//32+u)%8

@given(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32), st.integers(0, 255))
def test_the_pad_is_a_clock(base, x, u):
    t = [torch.full((1, 3, 2, 2), v) for v in (base, x)]
    k = torch.full((1, 3, 2, 2), u, dtype=torch.uint8)
    p = padded(*t, k)
    level = to_uint8(p)
    assert torch.equal(to_float(level), p) and level.unique().tolist() in ([by_hand(base, x, u)], [by_hand(round(base, 6), round(x, 6), u)])
    assert ((unpadded(p, k)-t[1]).abs()*127.5).max()<16.1

def test_a_pad_shows_nothing_of_what_is_hidden():
    "Whatever is hidden, all letters are equally often there: black, white and noise alike."
    base = pictures(1)
    for x in (base*0-1, base*0+1, pictures(1, 3)):
        k = draw_streams(64, SIZE, torch.Generator().manual_seed(4))
        c = to_uint8(padded(base.expand(64, -1, -1, -1), x.expand(64, -1, -1, -1), k)).long()%PAD_LEVELS
        counts = torch.bincount(c.flatten(), minlength=PAD_LEVELS).float()
        assert ((counts-counts.mean()).square()/counts.mean()).sum()<30        # chi square, 7 degrees of freedom
    assert torch.equal(to_uint8(padded(base, x, k[:1]))//8, to_uint8(padded(base, base*0, k[1:2]))//8)   # the upper bits know neither

def test_pads_open_only_with_their_own_secret():
    x = to_float(to_uint8(pictures()))
    X,Y = (net.eval() for net in generators_of('pad', SIZE, 4))
    names = ['a', 'b', 'c']
    p = hide(X, x, secret(), names)
    def off(s, names=names): return (reveal(Y, p, s, names).float()-to_uint8(x).float()).abs().mean()
    right = off(secret())
    assert right<12 and all(off(s)>5*right for s in (secret(2), *(one_bit_off(secret(), i) for i in range(0, 256, 51)))) and off(secret(), ['b', 'a', 'c'])>3*right

@pytest.mark.parametrize('labels,word', [(['a', 'a', 'b'], 'different'), (['a'], 'labels'), ([], 'labels'), (['a', 'b', ''], 'label')], ids=str)
def test_no_two_pictures_under_one_label(labels, word, one_line):
    X,_ = generators_of('pad', SIZE, 4)
    with pytest.raises(ValueError) as e: hide(X.eval(), pictures(), secret(), labels)
    one_line(e.value, word)

def test_who_hides_with_what_everybody_knows(one_line):
    X,_ = generators_of('pad', SIZE, 4)
    with pytest.raises(ValueError) as e: hide(X.eval(), pictures(), TRIAL, ['a', 'b', 'c'])
    one_line(e.value, 'trial')
    with pytest.raises(TypeError) as e: hide(UNetGenerator(SIZE, 4).eval(), pictures(), secret(), ['a', 'b', 'c'])
    one_line(e.value, 'UNetGenerator')

# --- the training

@each_way
def test_each_network_learns_and_twice_is_the_same(way, street, fitted):
    a = trainer(way, street)
    first = weights(a)
    a.fit()
    assert same(weights(a), weights(fitted[way])) and a.history==fitted[way].history
    for k,v in a.nets.named_parameters():
        if k.split('.')[0] in ('G_X', 'G_Y'): assert not torch.equal(v, first[k]), k
    assert ('l1_wrong' in a.history[0])==(way=='signs')

def test_a_pad_lets_no_loss_of_recovery_reach_G_X(street):
    t = training('pad'); t.nets.train()
    x = to_float(street.train.images[:8]); labels = street.train.labels()[:8]*0+torch.arange(8)//4
    p,r = t.generate(x, *t.draw(8))
    losses = t.losses_G(x, Blur()(x), p, r, labels)
    X = list(t.nets['G_X'].parameters())
    for k in ('l1_rec', 'adv_rec'): assert all(g is None for g in torch.autograd.grad(losses[k], X, retain_graph=True, allow_unused=True)), k
    for k in ('l1_ano', 'adv_ano', 'reid_protected'): assert any(g is not None and g.abs().sum()>0 for g in torch.autograd.grad(losses[k], X, retain_graph=True, allow_unused=True)), k

def test_each_picture_has_a_stream_of_its_own():
    t = training('signs'); t.reseed(3)
    a = t.draw(8)
    assert a.shape==(2, 8, 3, *SIZE) and a.dtype==torch.uint8 and len(a.flatten(0, 1).flatten(1).unique(dim=0))==16
    assert not torch.equal(a, t.draw(8))
    t.reseed(3)
    assert torch.equal(a, t.draw(8)) and training('').draw(8)==()

@each_way
def test_resumed_is_uninterrupted(way, street, fitted, tmp_path):
    class Enough(Exception): pass
    class Stop(Checkpoint):
        def after_epoch(self, t):
            super().after_epoch(t)
            raise Enough
    with pytest.raises(Enough): trainer(way, street, Stop(tmp_path)).fit()
    again = trainer(way, street)
    Checkpoint(tmp_path).load(again)
    assert again.epoch==1
    again.fit()
    assert same(weights(again), weights(fitted[way]))

def test_a_pad_does_not_go_through_jpeg(one_line):
    with pytest.raises(ValueError) as e: preset('demo', keyed='pad', through='jpeg')
    one_line(e.value, 'JPEG')
    with pytest.raises(ValueError) as e: preset('demo', keyed='yes')
    one_line(e.value, 'keyed')

# --- the files

some_ways = pytest.mark.parametrize('way', ['pad', pytest.param('signs', marks=pytest.mark.full)])

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "The folder of a run of each way, one epoch of one arm; trained when it is asked for."
    class Runs(dict):
        def __missing__(self, way):
            self[way] = tmp_path_factory.mktemp(way)/'run'
            run_experiment(preset('demo', **TINY|dict(keyed=way, epochs=1, validate_every=1)), self[way], 'w/o U', device='cpu')
            return self[way]
    return Runs()

@some_ways
def test_a_run_is_read_again_and_holds_no_secret(runs, way):
    folder = runs[way]
    arm = load_arm(folder, 'w/o U')
    kinds = dict(signs=(SignsWriter, SignsReader), pad=(PadWriter, PadReader))[way]
    assert (type(arm.anonymizer), type(arm.recovery))==kinds and torch.equal(arm.anonymizer.stream[0], stream_of(TRIAL, SIZE))
    mine = secret_of('not to be found', CHEAP)
    hide(arm.anonymizer, pictures(), mine, ['a', 'b', 'c'])
    needles = [mine, mine.hex().encode(), stream_of(TRIAL, SIZE).numpy().tobytes()[:64], b'not to be found']
    files = [f for f in folder.rglob('*') if f.is_file()]
    assert files and not any(n in f.read_bytes() for f in files for n in needles)
    at = folder/ARM_FOLDERS['w/o U']
    if os.name=='posix': assert stat.S_IMODE((at/'recovery.safetensors').stat().st_mode)==0o600

# --- bundles and folders

@pytest.fixture(scope='module')
def raw_runs(tmp_path_factory):
    "The folder of a run of each way whose networks have learnt nothing, and its bundles."
    class Runs(dict):
        def __missing__(self, way):
            folder,cfg = tmp_path_factory.mktemp(f'raw-{way}'), preset('demo', keyed=way, ngf=4)
            torch.manual_seed(0)
            write_json(asdict(cfg)|dict(run=dict(arms=['w/o U'], identities=96)), folder/'run'/'config.json')
            save_arm(Arm('w/o U', agw_of(cfg, 96), *generators_of(way, cfg.size, 4)), folder/'run')
            self[way] = dict(run=folder/'run', share=export(folder/'run', 'protect', folder/'share'), key=export(folder/'run', 'recover', folder/'key'))
            return self[way]
    return Runs()

@pytest.fixture
def cheap(monkeypatch): monkeypatch.setattr(deploy, 'new_salt', lambda: Salt(os.urandom(16).hex(), n=2**14))

@pytest.fixture
def say(tmp_path, capsys, monkeypatch):
    "The command, its exit code and what it said; the phrases are in no file but their own, and in nothing that was said."
    for name,phrase in PHRASES.items(): (tmp_path/name).write_text(phrase+'\n')
    said = []
    def call(*args):
        code = main([str(a) for a in args])
        said.append(capsys.readouterr())
        return code, said[-1].out, said[-1].err
    yield call
    needles = [form for phrase in PHRASES.values() for form in (phrase.encode(), phrase.encode('utf-16-le'))]
    for f in tmp_path.rglob('*'):
        if f.is_file() and f.name not in PHRASES: assert not any(n in f.read_bytes() for n in needles), f
    assert not any(p in text for p in PHRASES.values() for out in said for text in out)

PHRASES = dict(right='four horses, one gate', wrong='five horses, one gate')

def photos(folder, n=5, size=(64,32)):
    people = SyntheticPedestrians(size=size, seed=99).split([(p, p%2, 0) for p in range(n)]).images.permute(0,2,3,1).numpy()
    for i,im in enumerate(people):
        (folder/f'd{i%2}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(im).save(folder/f'd{i%2}'/f'{i}.png')
    return folder

def tree(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}
def pngs(folder): return {k: v for k,v in tree(folder).items() if k.endswith('.png')}
def pixels(path): return np.asarray(Image.open(path).convert('RGB')).astype(int)
def off_by(a, b): return float(np.mean([np.abs(pixels(a/n)-pixels(b/n)).mean() for n in pngs(a)]))

def test_there_and_back_with_a_pad(raw_runs, tmp_path, say, cheap):
    src,made = photos(tmp_path/'src', size=(80,40)), raw_runs['pad']
    hide,show = ('protect', src, '--with', made['share'], '--device', 'cpu', '--phrase-file'), ('recover', tmp_path/'out', '--key', made['key'], '--device', 'cpu', '--phrase-file')
    assert say(*hide, tmp_path/'right', '--out', tmp_path/'out')[0]==0
    assert 'secret' not in (tmp_path/'out'/RECORD).read_text() and salt_of(tmp_path/'out').n==2**14
    for word in PHRASES: assert say(*show, tmp_path/word, '--out', tmp_path/f'{word} back')[0]==0   # nothing tells which is which
    right,wrong = off_by(tmp_path/'right back', src), off_by(tmp_path/'wrong back', src)
    assert right<30 and right<.35*wrong, (right, wrong)
    code,_,err = say(*show, tmp_path/'right', '--out', tmp_path/'wrong back')   # a second try does not stop at what the first has left
    assert code==2 and 'another command' in err
    for f in (tmp_path/'right back').rglob('*.png'): assert stat.S_IMODE(f.stat().st_mode)==0o600
    one = Recovery.load(made['key'], device='cpu', phrase=PHRASES['right'], salt=salt_of(tmp_path/'out'))
    name = 'd1/3.png'
    assert (np.asarray(one(tmp_path/'out'/name, names=name))==pixels(tmp_path/'right back'/name)).all()
    assert say('protect', src, '--with', made['run'], '--device', 'cpu', '--phrase-file', tmp_path/'right', '--out', tmp_path/'more')[0]==0
    assert salt_of(tmp_path/'more')!=salt_of(tmp_path/'out') and not set(pngs(tmp_path/'more').values())&set(pngs(tmp_path/'out').values())

@each_way
def test_one_secret_for_each_picture(raw_runs, tmp_path, cheap, way, monkeypatch):
    "The same phrase, salt and name: the same bytes. Another of any of them: others."
    src,salts = photos(tmp_path/'src', 2), [CHEAP]*3+[Salt('5b'*16, n=2**14)]
    (src/'d0'/'same.png').write_bytes((src/'d0'/'0.png').read_bytes())
    monkeypatch.setattr(deploy, 'new_salt', lambda: salts.pop(0))
    def made(name, phrase): protect_folder(src, raw_runs[way]['share'], tmp_path/name, phrase=phrase, device='cpu'); return pngs(tmp_path/name)
    first,again,other,elsewhere = made('a', 'one'), made('b', 'one'), made('c', 'two'), made('d', 'one')
    assert first==again and len(set(first.values()))==3 and first['d0/0.png']!=first['d0/same.png']
    for name in first: assert len({m[name] for m in (first, other, elsewhere)})==3

@each_way
def test_killed_and_repeated(raw_runs, tmp_path, monkeypatch, way, cheap, one_line):
    from privreid import tree as t
    src,steps,old = photos(tmp_path/'src'), [0], t.Output.put
    def act(phrase='right', out='out', **more): return protect_folder(src, raw_runs[way]['share'], tmp_path/out, batch=2, phrase=phrase, device='cpu', **more)
    class Killed(BaseException): pass
    def dies(self, *args):
        steps[0] += 1
        if steps[0]==4: raise Killed
        return old(self, *args)
    monkeypatch.setattr(t.Output, 'put', dies)
    with pytest.raises(Killed): act()
    monkeypatch.undo()
    monkeypatch.setattr(deploy, 'new_salt', lambda: 1/0)
    some = pngs(tmp_path/'out')
    with pytest.raises(ValueError) as e: act('wrong')
    one_line(e.value, 'another phrase', tmp_path/'out')
    assert pngs(tmp_path/'out')==some and len(some)==3
    assert act().pictures==5
    salt,whole = salt_of(tmp_path/'out'), tree(tmp_path/'out')
    monkeypatch.setattr(deploy, 'new_salt', lambda: salt)
    act(out='whole')
    assert tree(tmp_path/'whole')==whole
    with pytest.raises(ValueError): act('wrong')
    assert act().new==0 and tree(tmp_path/'out')==whole
    monkeypatch.setattr(deploy, 'new_salt', lambda: CHEAP)
    assert act('wrong', force=True).new==5 and salt_of(tmp_path/'out')==CHEAP   # all anew, with a salt of its own

def test_a_name_is_for_one_picture(raw_runs, tmp_path, cheap, one_line):
    "Or two pictures under one pad would give each other away."
    src = photos(tmp_path/'src', 2)
    def act(): return protect_folder(src, raw_runs['pad']['share'], tmp_path/'out', phrase='one', device='cpu')
    act()
    before = tree(tmp_path/'out')
    (tmp_path/'out'/'d0'/'0.png').unlink()
    assert act().new==1 and tree(tmp_path/'out')==before
    (tmp_path/'out'/'d0'/'0.png').unlink()
    (src/'d0'/'0.png').write_bytes((src/'d1'/'1.png').read_bytes())
    with pytest.raises(ValueError) as e: act()
    one_line(e.value, 'd0/0.png', '--force')
    assert not (tmp_path/'out'/'d0'/'0.png').exists()

def test_archives_have_a_salt_each(raw_runs, tmp_path, say, cheap):
    import tarfile
    src = photos(tmp_path/'src', 4)
    for d in ('d0', 'd1'):
        with tarfile.open(tmp_path/f'{d}.tar', 'w') as t: t.add(src/d, d)
    (tmp_path/'tars').mkdir()
    for d in ('d0', 'd1'): (tmp_path/f'{d}.tar').rename(tmp_path/'tars'/f'{d}.tar')
    made = raw_runs['pad']
    def hide(): return say('protect', tmp_path/'tars', '--from-tar', '--with', made['share'], '--phrase-file', tmp_path/'right', '--device', 'cpu', '--out', tmp_path/'out')
    assert hide()[0]==0
    whole = tree(tmp_path/'out')
    assert hide()[0]==0 and tree(tmp_path/'out')==whole and salt_of(tmp_path/'out'/'d0.tar')!=salt_of(tmp_path/'out'/'d1.tar')
    assert say('recover', tmp_path/'out'/'d1.tar', '--key', made['key'], '--phrase-file', tmp_path/'right', '--device', 'cpu', '--out', tmp_path/'back')[0]==0
    assert off_by(tmp_path/'back', src)<30

def test_random_names_and_small_pictures(raw_runs, tmp_path, say, cheap):
    src,made = photos(tmp_path/'src', 2), raw_runs['pad']
    Image.fromarray(np.zeros((20, 10, 3), np.uint8)).save(src/'small.png')
    hide = 'protect', src, '--with', made['share'], '--phrase-file', tmp_path/'right', '--device', 'cpu'
    code,out,_ = say(*hide, '--rename', tmp_path/'names', '--out', tmp_path/'out')
    assert code==1 and '--size network' in out and len(pngs(tmp_path/'out'))==2
    assert say('recover', tmp_path/'out', '--key', made['key'], '--names', tmp_path/'names', '--phrase-file', tmp_path/'right', '--device', 'cpu', '--out', tmp_path/'back')[0]==0
    assert off_by(tmp_path/'back', src)<30 and set(pngs(tmp_path/'back'))=={'d0/0.png', 'd1/1.png'}
    assert say(*hide, '--size', 'network', '--out', tmp_path/'all')[0]==0

def test_what_is_refused(raw_runs, tmp_path, say, cheap, monkeypatch):
    from getpass import GetPassWarning
    def nobody(*_): raise GetPassWarning
    monkeypatch.setattr('getpass.getpass', nobody)
    src,pad,plain,phrase = photos(tmp_path/'src', 2), raw_runs['pad'], raw_runs[''], ('--phrase-file', tmp_path/'right')
    def no(*args, words):
        code,out,err = say(*args, '--device', 'cpu', '--out', tmp_path/'x')
        assert code==2 and not out and err.count('\n')==1 and all(w in err for w in words), err
        assert not (tmp_path/'x').exists()
    no('protect', src, '--with', pad['share'], words=['--phrase-file', 'terminal'])
    no('protect', src, '--with', plain['share'], *phrase, words=['takes none'])
    no('protect', src, '--train', *phrase, words=['phrase'])
    no('protect', src, '--with', pad['share'], '--format', 'jpeg', *phrase, words=['JPEG'])
    no('protect', src, '--with', pad['share'], '--engine', 'ray', *phrase, words=['keyed', 'ray'])
    no('protect', src, '--with', pad['share'], '--phrase-file', tmp_path/'none', words=['none', 'phrase'])
    (tmp_path/'boxes.json').write_text('{"1": [[1, 1, 20, 30]], "2": [[1, 1, 20, 30]]}')
    no('protect', src, '--with', pad['share'], '--boxes', tmp_path/'boxes.json', words=['film', 'keyed'])
    no('protect', src, '--with', pad['share'], '--boxes', tmp_path/'boxes.json', *phrase, words=['--phrase-file', 'film'])
    assert say('protect', src, '--with', pad['share'], '--device', 'cpu', *phrase, '--out', tmp_path/'out')[0]==0
    back = 'recover', tmp_path/'out', '--key', pad['key']
    no(*back, words=['--phrase-file', 'terminal'])
    no(*back, *phrase, '--engine', 'ray', words=['keyed', 'ray'])
    no('recover', tmp_path/'out', '--key', plain['key'], *phrase, words=['pair'])
    record = json.loads((tmp_path/'out'/RECORD).read_text())
    for changes in (dict(salt=None), dict(salt='00'), dict(salt=7), dict(n=None), dict(n=2**40), dict(n=12345), dict(r=9), dict(p='x')):
        (tmp_path/'out'/RECORD).write_text(json.dumps(record|dict(job={k: v for k,v in (record['job']|changes).items() if v is not None})))
        no(*back, *phrase, words=['salt', RECORD])
        code,_,err = say('protect', src, '--with', pad['share'], '--device', 'cpu', *phrase, '--out', tmp_path/'out')
        assert code==2 and 'salt' in err and err.count('\n')==1
    (tmp_path/'out'/RECORD).unlink()
    no(*back, '--force', *phrase, words=['salt', RECORD])

def test_signs_go_through_jpeg_with_a_warning(raw_runs, tmp_path, say, cheap):
    code,_,err = say('protect', photos(tmp_path/'src', 2), '--with', raw_runs['signs']['share'], '--format', 'jpeg', '--phrase-file', tmp_path/'right', '--device', 'cpu', '--out', tmp_path/'out')
    assert code==0 and 'JPEG loses' in err
    assert say('recover', tmp_path/'out', '--key', raw_runs['signs']['key'], '--phrase-file', tmp_path/'right', '--device', 'cpu', '--out', tmp_path/'back')[0]==0

def test_the_phrase_is_asked_for(raw_runs, tmp_path, cheap, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr('getpass.getpass', lambda prompt: asked.append(prompt) or 'typed in')
    assert main(['protect', str(photos(tmp_path/'src', 2)), '--with', str(raw_runs['pad']['share']), '--device', 'cpu', '--out', str(tmp_path/'out')])==0
    assert asked==['Phrase: ', 'Once more: ']
    assert main(['recover', str(tmp_path/'out'), '--key', str(raw_runs['pad']['key']), '--device', 'cpu', '--out', str(tmp_path/'back')])==0
    assert len(asked)==3 and off_by(tmp_path/'back', tmp_path/'src')<30 and 'typed in' not in str(capsys.readouterr())

# --- one stream for one picture, whatever happens to a folder

@pytest.fixture
def shoot(raw_runs, tmp_path, cheap, monkeypatch):
    "Protect `src` with a pad; `killed_at`: the process dies while it puts that picture in its place."
    from privreid import tree as t
    class Killed(BaseException): pass
    def act(out='out', phrase='one', killed_at=None, **more):
        def go(): return protect_folder(tmp_path/'src', raw_runs['pad']['share'], tmp_path/out, phrase=phrase, device='cpu', batch=1, **more)
        if killed_at is None: return go()
        with monkeypatch.context() as m:
            put,steps = t.Output.put, []
            def dies(self, *args):
                steps.append(1)
                if len(steps)==killed_at: raise Killed
                return put(self, *args)
            m.setattr(t.Output, 'put', dies)
            with pytest.raises(Killed): go()
    photos(tmp_path/'src', 4)
    return act

def swap_originals(tmp_path):
    a,b = tmp_path/'src'/'d0'/'0.png', tmp_path/'src'/'d1'/'1.png'
    one,two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two); b.write_bytes(one)

@pytest.mark.parametrize('force', [False, True])
def test_a_killed_run_whose_pictures_were_taken_away(shoot, tmp_path, one_line, force):
    shoot(killed_at=4)
    begun = json.loads((tmp_path/'out'/'.privreid'/'journal').read_text().splitlines()[0])['job']['salt']
    for f in (tmp_path/'out').rglob('*.png'): f.unlink()
    swap_originals(tmp_path)
    if not force:
        with pytest.raises(ValueError) as e: shoot()
        one_line(e.value, 'd0/0.png', 'was another picture before')
    else:
        shoot(force=True)
        assert salt_of(tmp_path/'out').salt!=begun

def test_a_picture_that_was_refused_is_made_with_force_and_a_new_salt(shoot, tmp_path):
    shoot()
    before = salt_of(tmp_path/'out')
    (tmp_path/'out'/'d0'/'0.png').unlink(); (tmp_path/'out'/'d1'/'1.png').unlink()
    swap_originals(tmp_path)
    with pytest.raises(ValueError): shoot()
    assert shoot(force=True).new==4 and salt_of(tmp_path/'out')!=before

def test_an_archive_remembers_its_pictures(shoot, tmp_path):
    import tarfile
    shoot('out.tar')
    whole,short = tmp_path/'out.tar', tmp_path/'short.tar'
    with tarfile.open(whole) as a, tarfile.open(short, 'w') as b:
        for m in a:
            if m.name!='d0/0.png': b.addfile(m, a.extractfile(m))
    short.replace(whole)
    swap_originals(tmp_path)
    with pytest.raises(ValueError, match='another picture before'): shoot('out.tar')

def test_force_keeps_the_salt_of_what_stays(shoot, raw_runs, tmp_path):
    "An original that is gone cannot be protected again: its picture opens with the old list."
    shoot()
    before = salt_of(tmp_path/'out')
    (tmp_path/'src'/'d0'/'0.png').unlink()
    shoot(force=True)
    kept, = (tmp_path/'out').glob('privreid-*.json')
    assert json.loads(kept.read_text())['job']['salt']==before.salt!=salt_of(tmp_path/'out').salt
    one = Recovery.load(raw_runs['pad']['key'], device='cpu', phrase='one', salt=before)
    photos(tmp_path/'again', 4)
    assert np.abs(np.asarray(one(tmp_path/'out'/'d0'/'0.png', names='d0/0.png')).astype(int)-pixels(tmp_path/'again'/'d0'/'0.png')).mean()<30

def test_one_folder_has_one_phrase(shoot, tmp_path, one_line):
    shoot()
    import shutil
    shutil.rmtree(tmp_path/'src')
    photos(tmp_path/'src'/'more', 2)
    with pytest.raises(ValueError) as e: shoot(phrase='two')
    one_line(e.value, 'one folder has one phrase')

def test_a_name_that_comes_back_is_known(shoot, tmp_path):
    "Pictures are moved on, the camera counts on, and begins anew."
    shoot()
    for f in (tmp_path/'out').rglob('*.png'): f.unlink()
    first = (tmp_path/'src'/'d0'/'0.png').read_bytes()
    (tmp_path/'src'/'d0'/'0.png').unlink()
    shoot()
    (tmp_path/'src'/'d0'/'0.png').write_bytes((tmp_path/'src'/'d1'/'1.png').read_bytes())
    with pytest.raises(ValueError, match='another picture before'): shoot()
    (tmp_path/'src'/'d0'/'0.png').write_bytes(first)
    assert shoot().new==1

def test_files_that_changed_places_are_listed(shoot, raw_runs, tmp_path, say):
    shoot(phrase=PHRASES['right'])
    a,b = tmp_path/'out'/'d0'/'0.png', tmp_path/'out'/'d1'/'1.png'
    one,two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two); b.write_bytes(one)
    code,out,err = say('recover', tmp_path/'out', '--key', raw_runs['pad']['key'], '--phrase-file', tmp_path/'right', '--device', 'cpu', '--out', tmp_path/'back')
    assert code==1 and (out+err).count('it is not the file that was protected')==2 and set(pngs(tmp_path/'back'))=={'d0/2.png', 'd1/3.png'}

# --- phrases as they come

@pytest.mark.parametrize('head, phrase', [(b'\xef\xbb\xbf', 'four horses'), (b'', 'four horses')])
def test_a_mark_of_an_editor_is_no_part_of_a_phrase(tmp_path, head, phrase):
    (tmp_path/'p').write_bytes(head+b'four horses\r\nmore')
    assert passphrase_in(tmp_path/'p', 'phrase')==phrase

def test_a_phrase_in_another_encoding_is_refused(tmp_path, one_line):
    (tmp_path/'p').write_bytes('four horses\n'.encode('utf-16'))
    with pytest.raises(ValueError) as e: passphrase_in(tmp_path/'p', 'phrase')
    one_line(e.value, 'UTF-16')

def test_an_emoji_in_halves_is_the_emoji(one_line):
    assert secret_of('\ud83d\udc0e gate', CHEAP)==secret_of('\U0001f40e gate', CHEAP)
    with pytest.raises(ValueError) as e: secret_of('half \ud83d of one', CHEAP)
    one_line(e.value, 'no text')

def test_the_dearest_salt_is_affordable(): assert len(secret_of('four horses', Salt('00'*16, n=2**14, p=4)))==32

def test_a_phrase_does_not_lie_among_the_pictures(raw_runs, tmp_path, say):
    photos(tmp_path/'src', 1)
    (tmp_path/'src'/'right').write_text(PHRASES['right'])
    code,_,err = say('protect', tmp_path/'src', '--with', raw_runs['pad']['share'], '--phrase-file', tmp_path/'src'/'right', '--device', 'cpu', '--out', tmp_path/'out')
    assert code==2 and 'among the pictures' in err and not (tmp_path/'out').exists()

def test_no_master_key_is_left_of_a_film_that_is_refused(raw_runs, tmp_path, one_line):
    from privreid.exact import protect_exact
    from privreid.boxes import painted_film
    frames,boxes = painted_film(2)
    (tmp_path/'film').mkdir()
    for i,im in enumerate(frames): Image.fromarray(im).save(tmp_path/'film'/f'{i}.png')
    with pytest.raises(ValueError) as e: protect_exact(tmp_path/'film', boxes, raw_runs['pad']['share'], tmp_path/'out', tmp_path/'master')
    one_line(e.value, 'keyed')
    assert not (tmp_path/'master').exists()


@each_way
def test_a_bundle_says_that_it_is_keyed(raw_runs, way, one_line):
    for role,kinds in dict(share=(SignsWriter, PadWriter), key=(SignsReader, PadReader)).items():
        path = raw_runs[way][role]
        bundle = read_bundle(path, 'protect' if role=='share' else 'recover')
        net = bundle.net()
        assert bundle.facts['keyed']==way and type(net) is kinds[way=='pad'] and net.stream is None and 'phrase' in info(path)
        for keyed in ({*KEYED, 'yes', 3}-{way}):
            with pytest.raises(ValueError) as e: packed(bundle.facts|dict(keyed=keyed), bundle.tensors)
            one_line(e.value)
        with pytest.raises(ValueError): packed({k: v for k,v in bundle.facts.items() if k!='keyed'}, bundle.tensors)
        with pytest.raises(ValueError) as e: export_onnx(path, bundle.facts['role'], path.parent/'onnx')
        one_line(e.value, 'ONNX', way)
        assert not (path.parent/'onnx').exists()
    assert from_run(raw_runs[way]['run'], 'reid').facts['pair']==bundle.facts['pair']

def test_a_bundle_without_the_field_is_not_keyed(raw_runs):
    whole = raw_runs['']['share']
    bundle = read_bundle(whole, 'protect')
    assert 'keyed' not in bundle.facts and type(bundle.net()) is UNetGenerator and 'phrase' not in info(whole)

def test_names_in_python(raw_runs, tmp_path, one_line):
    made = raw_runs['pad']
    for kind,path in ((Anonymizer, made['share']), (Recovery, made['key']), (Anonymizer, made['run'])):
        with pytest.raises(ValueError) as e: kind.load(path, device='cpu')
        one_line(e.value, 'phrase')
    with pytest.raises(ValueError) as e: Recovery.load(made['key'], device='cpu', phrase='x')
    one_line(e.value, 'salt')
    with pytest.raises(ValueError) as e: Anonymizer.load(raw_runs['']['share'], device='cpu', phrase='x')
    one_line(e.value, 'takes none')
    hides = Anonymizer.load(made['share'], device='cpu', batch=2, phrase='x', salt=CHEAP)
    shows,misses = (Recovery.load(made['key'], device='cpu', batch=2, phrase=p, salt=CHEAP) for p in ('x', 'y'))
    u = to_uint8(pictures())
    names = ['a', 'b', 'c']
    p = hides(u, names=names)
    assert torch.equal(p, hide(read_bundle(made['share'], 'protect').net(), to_float(u), secret_of('x', CHEAP), names))
    def off(a): return (a.float()-u.float()).abs().mean()
    assert off(shows(p, names=names))<.5*off(misses(p, names=names)) and off(shows(p, names=names))<.5*off(shows(p, names=['b', 'c', 'a']))
    arrays = [im.permute(1,2,0).numpy() for im in u]
    as_list = hides(arrays, names=names)
    assert all((a==b.permute(1,2,0).numpy()).all() for a,b in zip(as_list, p)) and (hides(arrays[1], names='b')==as_list[1]).all()
    files = [Image.fromarray(a) for a in arrays]
    assert all((np.asarray(a)==b).all() for a,b in zip(hides(files, names=names), as_list))
    assert torch.equal(to_uint8(hides(to_float(u), names=names)), p)
    for wrong in (None, ['a', 'b'], ['a', 'b', 'b'], 'a'):
        for given in (u, to_float(u), arrays, files):
            with pytest.raises(ValueError) as e: hides(given, names=wrong)
            one_line(e.value, 'names=')
    with pytest.raises(ValueError) as e: Anonymizer.load(raw_runs['']['share'], device='cpu')(u, names=names)
    one_line(e.value, 'names')
    sent = pickle.dumps(hides)
    assert hides.secret not in sent
    with pytest.raises(ValueError) as e: pickle.loads(sent)(u, names=names)
    one_line(e.value, 'unlock')
    with pytest.raises(ValueError) as e: protect_boxes(arrays[0], [[1, 1, 20, 30]], hides)
    one_line(e.value, 'keyed')
