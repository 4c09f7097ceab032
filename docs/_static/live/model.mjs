// The networks of the page, run by onnxruntime-web; its script and its WebAssembly lie beside this file.

export const NETS = {protect: 'protect.onnx', recover: 'demo-key.onnx', other: 'another-key.onnx', reid: 'reid.onnx', outsider: 'outsider.onnx'};

export async function load(base, told = () => {}) {
  const engine = new URL('engine/', base).href, ort = await import(engine+'ort.wasm.min.mjs');
  ort.env.wasm.wasmPaths = engine; ort.env.wasm.numThreads = 1; ort.env.logLevel = 'error';
  const nets = {};
  for (const [k, name] of Object.entries(NETS)) {
    told(`Loading ${name} …`);
    try {
      const answer = await fetch(new URL(name, base));
      if (!answer.ok) throw new Error(`the server says ${answer.status}`);
      nets[k] = await ort.InferenceSession.create(new Uint8Array(await answer.arrayBuffer()), {executionProviders: ['wasm'], extra: {session: {disable_quant_qdq: '1'}}});
    } catch (e) { throw new Error(`The network ${name} could not be read (${String(e.message || e).split('\n')[0].slice(0, 120)}): reload the page. Until then the picture above shows what it does.`); }
  }
  let queue = Promise.resolve();
  // Pictures (n of 3,H,W in [0,1]) in; pictures in [0,1], or features, out. One after the other: the engine has one thread.
  async function run(k, pictures, h = 64, w = 32) {
    const size = 3*h*w, x = new Float32Array(pictures.length*size);
    pictures.forEach((p, i) => p.forEach((v, j) => { x[i*size+j] = 2*v-1; }));
    const mine = queue.then(() => nets[k].run({x: new ort.Tensor('float32', x, [pictures.length, 3, h, w])}));
    queue = mine.catch(() => {});
    const {y} = await mine, each = y.data.length/pictures.length, seen = k !== 'reid' && k !== 'outsider';
    return pictures.map((_, i) => { const part = y.data.slice(i*each, (i+1)*each); return seen ? part.map(v => (v+1)/2) : part; });
  }
  return {run};
}

export const distance = (a, b) => Math.sqrt(a.reduce((s, v, i) => s+(v-b[i])**2, 0));
export const psnr = (a, b) => { const mse = a.reduce((s, v, i) => s+(v-b[i])**2, 0)/a.length; return mse ? -10*Math.log10(mse) : Infinity; };
// Places in a gallery, nearest first: [[index, distance], …]
export const ranking = (query, gallery) => gallery.map((g, i) => [i, distance(query, g)]).sort((a, b) => a[1]-b[1]);
