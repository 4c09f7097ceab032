"A file says what it is, proves part of it, and cannot be mistaken for another."
import importlib.util, json, os, random, resource, shutil, stat, struct
from pathlib import Path
import pytest, torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save
from privreid import locks
from privreid.bundles import KINDS, TERMS, bundle_of, export, mark_of, info, look_at, packed, read_bundle, terms_of, unpacked
from privreid.config import preset
from privreid.experiments import run_experiment
from privreid.locks import locked, unlocked
from privreid.records import save_weights

TINY = dict(people=12, test_people=6, epochs=1, batch=16, ngf=4, ndf=4, milestones=())
encrypts = pytest.mark.skipif(not importlib.util.find_spec('cryptography'), reason="encrypts keys: pip install 'privreid[keys]'")

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bundles')/'run'
    run_experiment(preset('demo', **TINY), folder, ('Upper', 'Base', 'w/o U', 'w/ U'))
    return folder

@pytest.fixture(scope='module')
def wholes(run): return {role: bundle_of(run, role) for role in KINDS}

@pytest.fixture
def cheap(monkeypatch): monkeypatch.setattr(locks, 'COST', dict(n=2**14, r=8, p=1))

def test_what_comes_back_is_what_left(run, tmp_path):
    for role,file in dict(protect='anonymizer', recover='recovery', reid='reid').items():
        net = read_bundle(export(run, role, tmp_path/role), role).net()
        for k,v in load_file(run/'with-u'/f'{file}.safetensors').items(): assert (net.state_dict()[k]==v).all(), (role, k)
        assert not net.training

def test_modes_of_files(run, tmp_path):
    key,share = export(run, 'recover', tmp_path/'mine'), export(run, 'protect', tmp_path/'others')
    assert stat.S_IMODE(key.stat().st_mode)==0o600 and stat.S_IMODE(key.parent.stat().st_mode)==0o700
    assert stat.S_IMODE(share.stat().st_mode)&0o044
    key.chmod(0o644)
    assert 'WARNING: others' in info(key)

def test_what_is_given_away_holds_nothing_of_the_key(run, wholes):
    "Its bytes: no weight of the recovery network, nor the seed that would train it again."
    for v in load_file(run/'with-u'/'recovery.safetensors').values():
        if v.is_floating_point() and v.numel()>=16 and len(v.unique())>8:
            bits = v.contiguous().numpy().tobytes()
            for at in range(0, len(bits)-16, max(16, len(bits)//50//4*4)): assert bits[at:at+16] not in wholes['protect'], 'a piece of the key'
    assert b'seed' not in wholes['protect']

def test_no_way_to_put_the_key_into_what_is_given_away(run, wholes, tmp_path):
    key = unpacked(wholes['recover'])
    for changes in (dict(role='protect'), dict(role='protect', weights=mark_of(key.tensors))):
        with pytest.raises(ValueError, match='not those of the anonymizer'): packed(key.facts|changes, key.tensors)
    with pytest.raises(ValueError, match='not those of the network'): packed(unpacked(wholes['protect']).facts, unpacked(wholes['protect']).tensors|dict(more=torch.zeros(3)))
    twice = tmp_path/'run'
    shutil.copytree(run, twice)
    shutil.copy(twice/'with-u'/'recovery.safetensors', twice/'with-u'/'anonymizer.safetensors')
    with pytest.raises(ValueError, match='give the key away'): export(twice, 'protect', tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_each_file_for_its_purpose(run, wholes, tmp_path, one_line):
    for role,whole in wholes.items():
        (tmp_path/'x').write_bytes(whole)
        for other in set(KINDS)-{role}:
            with pytest.raises(ValueError) as e: read_bundle(tmp_path/'x', other)
            one_line(e.value, tmp_path/'x', 'is needed')
    (tmp_path/'x').write_bytes(wholes['recover'])
    with pytest.raises(ValueError, match='cannot bring them back'): read_bundle(tmp_path/'x', 'recover', pair='0'*32)
    assert info(tmp_path/'x').startswith('KEY of pair')
    with pytest.raises(ValueError, match='nothing says what its weights are'): read_bundle(run/'with-u'/'recovery.safetensors', 'protect')

def test_a_key_never_lies_beside_what_is_given_away(run, tmp_path):
    export(run, 'protect', tmp_path/'a'); export(run, 'recover', tmp_path/'b')
    for role,folder in (('recover', 'a'), ('protect', 'b'), ('reid', 'b')):
        with pytest.raises(ValueError, match='never lies beside'): export(run, role, tmp_path/folder)
    with pytest.raises(FileExistsError, match='--force'): export(run, 'protect', tmp_path/'a')
    export(run, 'protect', tmp_path/'a', force=True)

def test_arms_and_mistakes(run, tmp_path):
    with pytest.raises(ValueError, match='hides nobody'): export(run, 'protect', tmp_path/'a', 'Upper')
    with pytest.raises(ValueError, match='unknown'): export(run, 'protcet', tmp_path/'a')
    with pytest.raises(ValueError, match='is for keys'): export(run, 'protect', tmp_path/'a', passphrase='x')
    with pytest.raises(FileNotFoundError): export(tmp_path/'none', 'protect', tmp_path/'a')
    a,b = (unpacked(bundle_of(run, 'protect', arm)).facts for arm in ('w/ U', 'without-u'))
    assert (a['arm'], b['arm'])==('w/ U', 'w/o U') and a['run']==b['run']

def test_terms_of_the_data(run, tmp_path, one_line):
    assert unpacked(bundle_of(run, 'protect')).facts['terms']==TERMS['synthetic']
    said = info(export(run, 'protect', tmp_path/'a', terms=' for the museum only '))
    assert f"Terms of the data: {TERMS['synthetic']}; for the museum only." in said
    for wrong in ('a\nb', 'x'*1001, '\x1b]0;', 7):
        with pytest.raises(ValueError) as e: export(run, 'protect', tmp_path/'b', terms=wrong)
        one_line(e.value, 'terms')
    assert not (tmp_path/'b').exists()

def test_a_set_for_research_is_named_whatever_is_said(wholes):
    whole = unpacked(wholes['protect'])
    for data in ('market1501', 'msmt17', 'cuhk03', 'cuhk03-labeled'): assert 'research' in terms_of(data, 'free for all')
    def told(path, **changes):
        facts = {k: v for k,v in (whole.facts|changes).items() if v is not None}
        path.write_bytes(packed(facts, whole.tensors))
        return info(path)
    import tempfile
    path = Path(tempfile.mkdtemp())/'x'
    assert 'Market-1501: given out for research. Ask whom' in told(path, data='market1501', terms=terms_of('market1501'))
    assert 'Terms of the data: not stated' in told(path, data='folder', terms=None)   # a bundle of an earlier version
    assert 'Terms' not in told(path, terms=None)
    for terms in ('a\nb', 'x'*1001, 3):
        with pytest.raises(ValueError): told(path, terms=terms)

# --- whatever a file holds

def told(path, role='protect')->str:
    with pytest.raises((ValueError, OSError)) as e: read_bundle(path, role)
    assert '\n' not in str(e.value) and len(str(e.value))<600
    return str(e.value)

def test_huge_claims_take_no_memory(wholes, tmp_path):
    path,before = tmp_path/'x', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = unpacked(wholes['protect']).facts
    def with_facts(**changes):
        text = json.dumps({'__metadata__': {'privreid': json.dumps(facts|changes)}, 'body.0.weight': dict(dtype='F32', shape=[10**6, 10**6], data_offsets=[0, 4*10**12])}).encode()
        return struct.pack('<Q', len(text))+text
    for whole in (struct.pack('<Q', 2**63), struct.pack('<Q', 10**9)+b'{', with_facts(), with_facts(ngf=4096, height=4096, width=4096), with_facts(ngf=10**30), with_facts(height=33),
                  struct.pack('<Q', 10**6)+b'['*10**6, struct.pack('<Q', 2)+b'{}', struct.pack('<Q', 4)+b'null'):
        path.write_bytes(whole)
        told(path)
        with pytest.raises(ValueError): look_at(path); info(path)
    with open(path, 'wb') as f: f.truncate(2**33)   # a sparse file
    assert 'bytes' in told(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before<150_000   # kB

@pytest.mark.skipif(os.name!='posix', reason='pipes')
def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    for odd in (tmp_path/'pipe', Path('/dev/zero'), tmp_path, tmp_path/'none'): told(odd)

def check_damaged(whole:bytes, seed:int, path):
    dice = random.Random(seed)
    kind = dice.randrange(4)
    if kind==0: whole = whole[:dice.randrange(len(whole))]
    elif kind==1: whole = whole+dice.randbytes(dice.randrange(1, 64))
    else:
        at = dice.randrange(min(len(whole), 4000) if kind==2 else len(whole))
        whole = whole[:at]+bytes([whole[at]^(1<<dice.randrange(8))])+whole[at+1:]
    path.write_bytes(whole)
    try: bundle = read_bundle(path, 'protect')
    except ValueError as e: assert '\n' not in str(e) and len(str(e))<600; return
    assert mark_of(bundle.tensors)==bundle.facts['pair']   # a bit of a note, say of a date: never of a weight

@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_damaged_bundles_get_one_sentence(wholes, tmp_path_factory, seed): check_damaged(wholes['protect'], seed, tmp_path_factory.getbasetemp()/'odd')

@pytest.mark.full
def test_many_damaged_bundles_get_one_sentence(wholes, tmp_path):
    for seed in range(2000): check_damaged(wholes['protect'], seed, tmp_path/'odd')

# --- behind a passphrase

@encrypts
def test_a_passphrase_opens(run, tmp_path, cheap):
    key = export(run, 'recover', tmp_path, passphrase='Zoë')
    whole = key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode)==0o600 and 'encrypted' in info(key) and look_at(key)[1]
    plain = unpacked(bundle_of(run, 'recover'))
    assert not [v for v in plain.tensors.values() if v.numel()>=16 and v.is_floating_point() and len(v.unique())>8 and v.contiguous().numpy().tobytes()[:16] in whole]
    for word in ('Zoë', 'Zoe\u0308', lambda: 'Zoë'): assert mark_of(read_bundle(key, 'recover', word).tensors)==plain.facts['weights']
    for word in ('zoë', 'x'*10000):
        with pytest.raises(ValueError, match='another passphrase'): read_bundle(key, 'recover', word)
    with pytest.raises(ValueError, match='is encrypted'): read_bundle(key, 'recover')
    def never(): pytest.fail('a key that does not fit is refused before anybody is asked')
    with pytest.raises(ValueError, match='cannot bring them back'): read_bundle(key, 'recover', never, pair='0'*32)

@encrypts
@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_altered_keys_do_not_open(wholes, seed):
    before,locks.COST = locks.COST, dict(n=2**14, r=8, p=1)
    try: whole = locked(b'weights', 'word', '0'*32)
    finally: locks.COST = before
    at = seed%(len(whole)-16)+16
    for odd in (whole[:at], whole[:at]+bytes([whole[at]^(1<<seed%8)])+whole[at+1:]):
        with pytest.raises(ValueError): unlocked(odd, 'word')

@encrypts
def test_one_passphrase_of_bytes_that_are_no_text(tmp_path, cheap):
    (tmp_path/'word').write_bytes(b'\xff\xfe\r\nsecond line')
    word = locks.passphrase_in(tmp_path/'word')
    assert unlocked(locked(b'x', word, '0'*32), word)==b'x'

def test_nobody_to_ask(monkeypatch, tmp_path):
    import getpass, warnings
    def shows(prompt): warnings.warn('seen by all', getpass.GetPassWarning); return 'x'
    monkeypatch.setattr(getpass, 'getpass', shows)
    with pytest.raises(ValueError, match='--passphrase-file'): locks.ask_passphrase()
    words = iter(('one', 'two'))
    monkeypatch.setattr(getpass, 'getpass', lambda prompt: next(words))
    with pytest.raises(ValueError, match='two ways'): locks.ask_passphrase(True)
    for content in (b'', b'\n'):
        (tmp_path/'word').write_bytes(content)
        with pytest.raises(ValueError, match='is empty'): locks.passphrase_in(tmp_path/'word')
    with pytest.raises(OSError, match='cannot be read'): locks.passphrase_in(tmp_path/'none')
