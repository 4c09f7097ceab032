// Blur, pixelation and noise of privreid.desensitize, and the way of a picture of one's own to 64 x 32: one picture (3,H,W) in [0,1].

function boxRadius(radius, passes = 3) {
  const l = Math.floor((Math.sqrt(12*radius*radius/passes+1)-1)/2);
  return l+(2*l+1)*(l*(l+1)-3*radius*radius/passes)/(6*(radius*radius/passes-(l+1)**2));
}

// Blurring one axis of n pixels as a matrix: a box, three times.
export function blurMatrix(n, radius, passes = 3) {
  const rho = boxRadius(radius, passes), one = [];
  for (let i = 0; i < n; i++) {
    const left = Array.from({length: n+1}, (_, j) => j === 0 ? 0 : j === n ? 1 : Math.min(1, Math.max(0, (j-i+rho)/(2*rho+1))));
    one.push(left.slice(1).map((v, j) => v-left[j]));
  }
  let all = one;
  for (let p = 1; p < passes; p++) all = all.map(row => one[0].map((_, j) => row.reduce((s, v, k) => s+v*one[k][j], 0)));
  return all;
}

function separable(x, h, w, rows, cols, H = h, W = w) {   // (3,h,w) to (3,H,W)
  const out = new Float32Array(3*H*W), half = new Float64Array(h*W);
  for (let c = 0; c < 3; c++) {
    for (let i = 0; i < h; i++) for (let j = 0; j < W; j++) { let v = 0; const row = cols[j]; for (let k = 0; k < w; k++) if (row[k]) v += row[k]*x[c*h*w+i*w+k]; half[i*W+j] = v; }
    for (let i = 0; i < H; i++) for (let j = 0; j < W; j++) { let v = 0; const row = rows[i]; for (let k = 0; k < h; k++) if (row[k]) v += row[k]*half[k*W+j]; out[c*H*W+i*W+j] = v; }
  }
  return out;
}

// Strengths are stated for pictures of 256 pixels height, as in the package.
export function blur(x, h, w, radius) { return separable(x, h, w, blurMatrix(h, radius*h/256), blurMatrix(w, radius*h/256)); }

const even = v => { const r = Math.round(v); return Math.abs(v%1) === .5 && r%2 ? r-1 : r; };   // Python rounds halves to even
export function pixelate(x, h, w, block) {
  const b = Math.min(Math.max(1, even(block*h/256)), Math.max(h, w)), out = new Float32Array(x.length);
  for (let c = 0; c < 3; c++) for (let i = 0; i < h; i += b) for (let j = 0; j < w; j += b) {
    const bottom = Math.min(i+b, h), right = Math.min(j+b, w);
    let sum = 0;
    for (let p = i; p < bottom; p++) for (let q = j; q < right; q++) sum += x[c*h*w+p*w+q];
    for (let p = i; p < bottom; p++) for (let q = j; q < right; q++) out[c*h*w+p*w+q] = sum/((bottom-i)*(right-j));
  }
  return out;
}

export function noisy(x, std, dice) { return x.map((v, i) => Math.min(1, Math.max(0, v+std*dice[i]))); }

// Rows of a triangle filter, as Pillow and PyTorch resize with antialias.
function triangle(from, to) {
  const scale = from/to, reach = Math.max(scale, 1);
  return Array.from({length: to}, (_, i) => {
    const centre = (i+.5)*scale, row = new Array(from).fill(0);
    let sum = 0;
    for (let k = Math.max(0, Math.floor(centre-reach+.5)); k < Math.min(from, Math.floor(centre+reach+.5)); k++) sum += row[k] = Math.max(0, 1-Math.abs(k+.5-centre)/reach);
    return row.map(v => v/sum);
  });
}

// The middle of a picture, twice as high as wide: left, top, width, height.
export function middle(w, h) {
  if (2*w > h) { const cut = Math.max(1, Math.floor(h/2)); return [Math.floor((w-cut)/2), 0, cut, h]; }
  const cut = Math.min(h, 2*w);
  return [0, Math.floor((h-cut)/2), w, cut];
}

// RGBA bytes of a canvas to (3,H,W) of whole grey levels.
export function resized(rgba, w, h, H = 64, W = 32) {
  const x = new Float32Array(3*h*w);
  for (let k = 0; k < h*w; k++) for (let c = 0; c < 3; c++) x[c*h*w+k] = rgba[4*k+c]/255;
  return separable(x, h, w, triangle(h, H), triangle(w, W), H, W).map(v => Math.round(Math.min(1, Math.max(0, v))*255)/255);
}

export const PIXELS = 50e6, BYTES = 40e6;   // of one picture; larger ones are refused

// A file of the visitor to (3,64,32); what is wrong is said in one sentence. Nothing leaves the page.
export async function readPicture(file) {
  const name = file.name || 'This';
  if (file.size > BYTES) throw new Error(`${name} has ${Math.round(file.size/1e6)} MB, and 40 are the most: save it smaller.`);
  const url = URL.createObjectURL(file), image = new Image();
  try {
    await new Promise((done, no) => { image.onload = done; image.onerror = () => no(new Error(`${name} is no picture that this browser can read: take a PNG, JPEG or WebP file.`)); image.src = url; });
    const w = image.naturalWidth, h = image.naturalHeight;
    if (w*h > PIXELS) throw new Error(`${name} has ${w} x ${h} pixels, ${Math.round(w*h/1e6)} million, and 50 million are the most: make it smaller, the network sees 64 x 32 of them.`);
    if (Math.min(w, h) < 8) throw new Error(`${name} has ${w} x ${h} pixels: that is too little to show anybody.`);
    const [left, top, cw, ch] = middle(w, h), shrink = Math.min(1, 1024/ch), canvas = document.createElement('canvas');
    canvas.width = Math.round(cw*shrink); canvas.height = Math.round(ch*shrink);
    const pen = canvas.getContext('2d', {willReadFrequently: true});
    pen.imageSmoothingQuality = 'high';
    pen.fillStyle = '#fff'; pen.fillRect(0, 0, canvas.width, canvas.height);   // what is transparent
    pen.drawImage(image, left, top, cw, ch, 0, 0, canvas.width, canvas.height);
    return resized(pen.getImageData(0, 0, canvas.width, canvas.height).data, canvas.width, canvas.height);
  } finally { URL.revokeObjectURL(url); }
}
