// The live page: a person from sliders or a picture of the visitor's own, hidden, recovered and searched for, by the networks of the demo.
import {normals, render} from './paint.mjs';
import {blur, noisy, pixelate, readPicture} from './hide.mjs';
import {distance, load, psnr, ranking} from './model.mjs';

const H = 64, W = 32, GALLERY = 24, SHOWN = 8;
const KINDS = ['raw', 'desensitized', 'protected', 'recovered'];
const KEYS = {'of this run': 'recover', 'of another run': 'other'};   // what is chosen -> network
const METHODS = {   // name -> range of the slider, where it starts, unit
  blur: {low: 2, high: 40, step: 1, start: 12, unit: v => `radius ${v} pixels of 256`},
  pixelation: {low: 8, high: 96, step: 8, start: 24, unit: v => `blocks of ${v} pixels of 256`},
  noise: {low: .05, high: 1.5, step: .05, start: .5, unit: v => `deviation ${(+v).toFixed(2)} of 1`}};
const SLIDERS = [   // id, label, words
  ['upper', 'Shirt', ['black', 'light grey', 'navy', 'sand']],
  ['pattern', 'Pattern', ['plain', 'wide stripes', 'stripes', 'upright stripes', 'checks', 'dots', 'chest band', 'sash']],
  ['lower_kind', 'Legs', ['trousers', 'shorts', 'skirt']],
  ['bag', 'Bag', ['none', 'backpack', 'shoulder bag', 'handbag']],
  ['coat', 'Coat', ['jacket', 'long coat']],
  ['person', 'Person', Array.from({length: 12}, (_, i) => `face ${i+1}`)],
  ['camera', 'Camera', ['camera 1', 'camera 2', 'camera 3', 'camera 4']],
  ['moment', 'Moment', Array.from({length: 12}, (_, i) => `moment ${i+1}`)]];
const START = {upper: 1, pattern: 3, lower_kind: 0, bag: 1, coat: 0, person: 0, camera: 0, moment: 0};

const el = (html) => { const t = document.createElement('template'); t.innerHTML = html.trim(); return t.content.firstElementChild; };

const slider = (id, label, low, high, step, value) =>
  `<div class="live-slider"><label for="live-${id}">${label}</label><output for="live-${id}" id="live-${id}-said"></output><input type="range" id="live-${id}" min="${low}" max="${high}" step="${step}" value="${value}"></div>`;
const choice = (id, label, options, value) =>
  `<div class="live-choice"><label for="live-${id}">${label}</label><select id="live-${id}">${options.map(o => `<option${o === value ? ' selected' : ''}>${o}</option>`).join('')}</select></div>`;

const PAGE = `
<section class="live" aria-label="The method, live">
  <div class="live-make">
  <div class="live-stages" role="group" aria-label="The picture and what becomes of it">${['raw', 'desensitized', 'protected', 'recovered', 'difference'].map(k =>
    `<figure><canvas width="${W}" height="${H}" role="img" id="live-${k}"></canvas><figcaption><b>${k.replace('sit', 'si&shy;t')}</b><span id="live-${k}-said"></span></figcaption></figure>`).join('')}</div>
  <p class="live-said" id="live-status" role="status"></p>
  <div class="live-controls">
    <fieldset><legend>Paint a person</legend>${SLIDERS.map(([id, label, words]) => slider(id, label, 0, words.length-1, 1, START[id])).join('')}</fieldset>
    <div>
      <fieldset class="live-drop" id="live-drop"><legend>Or take a picture of your own</legend>
        <label for="live-file">Choose a picture, or drop it here</label><input type="file" id="live-file" accept="image/*">
        <p>It never leaves this page: it is not sent, and not kept. Its middle is made 64 x 32 pixels. The networks know painted people only, so photographs come out rough.</p>
        <button type="button" class="live-button" id="live-back" hidden>Back to the painted person</button></fieldset>
      <fieldset><legend>Hide without a network</legend>${choice('method', 'Method', Object.keys(METHODS), 'blur')}${slider('strength', 'Strength', 2, 40, 1, 12)}
        <p>That is <i>desensitized</i>. The network was taught by a blur of 12 and works from the raw picture, whatever is chosen here.</p></fieldset>
      <fieldset><legend>Bring back</legend>${choice('key', 'Key', Object.keys(KEYS), 'of this run')}
        <p>A key is a recovery network. The other one was trained beside another network that hides, from other first weights.</p></fieldset>
    </div>
  </div>
  </div>
  <div class="live-search"><h3 class="live-heading" id="live-search">Who finds this person again?</h3>
    <p id="live-asked-said"></p>
    <div class="live-choices">${choice('query', 'Asked for', KINDS, 'raw')}${choice('gallery', 'Searched in', KINDS, 'protected')}</div>
    ${[['outsider', 'The outsider', 'a Re-ID model that was trained on raw pictures'], ['reid', 'The authorised model', 'the Re-ID model that was trained together with the network that hides']].map(([k, name, what]) =>
      `<div class="live-ranking"><p><b>${name}</b>, ${what}: <span id="live-${k}-found"></span></p><ol id="live-${k}-order" aria-label="${name}: the nearest pictures"></ol></div>`).join('')}
  </div>
  <details class="live-try"><summary>Four things to try</summary><ol>
    <li>Before you move it: which slider changes the protected picture most, the shirt or the pattern? Then look.</li>
    <li>Ask for <i>raw</i> in <i>desensitized</i>, and raise the strength until the outsider no longer finds the person. Does the authorised model last longer? Now search in <i>protected</i>.</li>
    <li>Set <i>pixelation</i> to the strength that looks as private to you as the protected picture. Only one of the two comes back with a key.</li>
    <li>Take the key of another run. PSNR falls; now ask for <i>raw</i> in <i>recovered</i>. Does the outsider find fewer people than in <i>protected</i>, too?</li></ol></details>
  <p class="live-small">The networks are those of a run of <code>privreid demo</code>, arm w/ U, with weights of 8 bits. A recovery network is a key; these two open painted people only, so they may lie here. They run in <a href="https://onnxruntime.ai">onnxruntime-web</a> (Microsoft, MIT licence).</p>
</section>`;

function draw(canvas, picture) {
  const pen = canvas.getContext('2d'), bytes = pen.createImageData(W, H), n = H*W;
  for (let k = 0; k < n; k++) { for (let c = 0; c < 3; c++) bytes.data[4*k+c] = Math.round(Math.min(1, Math.max(0, picture[c*n+k]))*255); bytes.data[4*k+3] = 255; }
  pen.putImageData(bytes, 0, 0);
}

// The place of picture 0, the one that shows the same person; how many are nearer.
export const placeOf = order => 1+order.findIndex(([i]) => i === 0);

export async function mount(bar, figure, base, told) {
  told('Loading the networks …');
  const [net, recipe] = await Promise.all([load(base, told), fetch(new URL('people.json', base)).then(r => r.json())]);
  told('Painting the gallery …');
  const photo = (who, camera, shot) => render(who, recipe.cameras[camera], shot, H, W, normals(3*H*W, shot.grain));
  const strangers = recipe.gallery.map(({who, camera, shot}) => photo(who, camera, shot));
  const features = async (pictures) => ({outsider: await net.run('outsider', pictures), reid: await net.run('reid', pictures)});
  const known = {raw: {pictures: strangers, ...await features(strangers)}};
  const hidden = await net.run('protect', strangers);
  known.protected = {pictures: hidden, ...await features(hidden)};

  const app = el(PAGE), $ = id => app.querySelector(`#live-${id}`), own = {picture: null, name: ''};
  for (const [id, label] of SLIDERS) $(id).setAttribute('aria-label', label);
  const hide = (x, seed) => {
    const v = +$('strength').value, m = $('method').value;
    return m === 'blur' ? blur(x, H, W, v) : m === 'pixelation' ? pixelate(x, H, W, v) : noisy(x, v, normals(x.length, seed));
  };
  const who = () => {
    const v = id => +$(id).value, row = {...recipe.people[v('person')]};
    return Object.assign(row, {upper: v('upper'), pattern: v('pattern'), lower_kind: v('lower_kind') || 3, bag: v('bag') || 9, coat: v('coat') ? 2 : 0});
  };
  const state = {};

  async function show() {
    const cam = +$('camera').value, at = +$('moment').value, row = who(), setting = {query: $('query').value, gallery: $('gallery').value};
    const strength = `${$('method').value} ${$('strength').value}`, key = KEYS[$('key').value];
    const raw = own.picture || photo(row, cam, recipe.moments[at]);
    const started = performance.now(), [protectedOne] = await net.run('protect', [raw]), [recovered] = await net.run(key, [protectedOne]);
    const milliseconds = performance.now()-started, desensitized = hide(raw, 1);
    const stages = {raw, desensitized, protected: protectedOne, recovered, difference: raw.map((v, i) => 3*Math.abs(v-recovered[i]))};
    for (const k of Object.keys(stages)) {
      draw($(k), stages[k]);
      const likeness = k === 'raw' ? (own.picture ? 'yours' : 'painted') : k === 'difference' ? 'what is lost, times 3' : `PSNR ${psnr(raw, stages[k]).toFixed(1)}\u00a0dB`;
      $(`${k}-said`).textContent = likeness; $(k).setAttribute('aria-label', `${k} picture, ${likeness}`);
    }
    // the same person in the gallery, under another camera and at another moment
    const mate = own.picture ? null : photo(row, (cam+2)%4, recipe.moments[(at+5)%12]);
    if (setting.gallery === 'desensitized' && known.desensitized?.strength !== strength) {
      const pictures = strangers.map((p, i) => hide(p, i+2));
      known.desensitized = {strength, pictures, ...await features(pictures)};
    }
    if (setting.gallery === 'recovered' && known.recovered?.key !== key) {
      const pictures = await net.run(key, known.protected.pictures);
      known.recovered = {key, pictures, ...await features(pictures)};
    }
    const as = {raw: x => x, desensitized: x => hide(x, 100), protected: async x => (await net.run('protect', [x]))[0], recovered: async x => (await net.run(key, await net.run('protect', [x])))[0]};
    const there = known[setting.gallery], first = mate && await as[setting.gallery](mate);
    const asked = stages[setting.query], found = await features(first ? [asked, first] : [asked]), order = {};
    for (const k of ['outsider', 'reid']) {
      const [query, ...one] = found[k];
      order[k] = ranking(query, [...one, ...there[k]]).map(([i, d]) => [first ? i : i+1, d]);   // 0: the same person
      const place = placeOf(order[k]), list = $(`${k}-order`);
      $(`${k}-found`).textContent = first ? (place === 1 ? `found at once, 1st of ${GALLERY}.` : `the right one is number ${place} of ${GALLERY}.`) : 'nobody here is you; these are taken for the most alike.';
      list.replaceChildren(...order[k].slice(0, SHOWN).map(([i, d], n) => {
        const item = el(`<li class="${i ? '' : 'live-right'}"><canvas width="${W}" height="${H}" role="img" aria-label="number ${n+1}, ${i ? 'somebody else' : 'the same person'}, distance ${d.toFixed(2)}"></canvas><span>${i ? n+1 : '✓ '+(n+1)}</span></li>`);
        draw(item.firstElementChild, i ? there.pictures[i-1] : first);
        return item;
      }));
    }
    $('asked-said').textContent = own.picture ? `Your picture is asked for among ${GALLERY-1} painted strangers.` : `Among ${GALLERY-1} strangers there is one picture of the same person, by another camera and at another moment. The nearest ${SHOWN} are shown; ✓ marks the right one.`;
    $('status').textContent = `${own.picture ? `${own.name}: hidden` : 'Hidden'} and recovered in ${milliseconds.toFixed(0)} ms.`;
    Object.assign(state, {stages, order, found, setting, milliseconds, mate: first, who: row, distance, turn: (state.turn || 0)+1});
  }
  // One computation at a time; of many moves of a slider the last one counts.
  let busy = false, again = false;
  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    try { do { again = false; await show(); } while (again); }
    catch (e) { $('status').textContent = `Something went wrong: ${e.message || e}. Reload the page.`; }
    finally { busy = false; }
  }
  function words() {
    for (const [id, , names] of SLIDERS) { const said = names[+$(id).value]; $(`${id}-said`).textContent = said; $(id).setAttribute('aria-valuetext', said); }
    const said = METHODS[$('method').value].unit($('strength').value);
    $('strength-said').textContent = said; $('strength').setAttribute('aria-valuetext', said);
  }
  function method() { const m = METHODS[$('method').value], s = $('strength'); s.min = m.low; s.max = m.high; s.step = m.step; s.value = m.start; }
  app.addEventListener('input', e => { if (e.target.id === 'live-file') return; if (e.target.id === 'live-method') method(); words(); refresh(); });
  async function take(file) {
    if (!file) return;
    try { own.picture = await readPicture(file); own.name = file.name; $('back').hidden = false; app.classList.add('live-own'); await refresh(); }
    catch (e) { $('status').textContent = e.message || String(e); }
    finally { $('file').value = ''; }   // the page forgets the file, so that the same one can be chosen again
  }
  $('file').addEventListener('change', e => take(e.target.files[0]));
  for (const kind of ['dragover', 'dragleave', 'drop']) app.addEventListener(kind, e => { e.preventDefault(); $('drop').classList.toggle('live-over', kind === 'dragover'); if (kind === 'drop') take(e.dataTransfer.files[0]); });
  $('back').addEventListener('click', () => { own.picture = null; $('back').hidden = true; app.classList.remove('live-own'); $('upper').focus(); refresh(); });
  words();
  await refresh();
  bar.replaceWith(app);
  (figure.closest('a.image-reference') || figure).hidden = true;
  $('upper').focus({preventScroll: true});
  app.live = {net, state, recipe, photo, refresh};
  return app;
}
