// The painter of privreid.canvas, body and pedestrians once more, for one picture in a page: same recipe, same shapes, same order.
// Numbers are doubles here and single precision there: pictures agree to within one grey level of 255, grain left out.

const hex = s => s.split(' ').map(h => [0, 2, 4].map(i => parseInt(h.slice(i, i+2), 16)/255));
export const PALETTES = {
  skin: hex('f0c8a8 dca882 c08a60 8e5c3c 5a3a28'), hair: hex('1c1814 3a2618 6e4826 b08a4c 8e8a88'),
  upper: hex('2b2d36 c4c0b4 2c3452 c9c0a6'), lower: hex('22242b 30323a'), shoes: hex('181818 5a5a58'),
  accent: hex('b84a40 c8ac4a 3c74a4 303034')};

const {sin, cos, abs, sqrt, max, min, floor, asin, atan2, PI, sign} = Math;
const clamp = (v, low = 0, high = 1) => v < low ? low : v > high ? high : v;
const soft = (v, sharp = 2) => clamp(.5+v*sharp);
const times = (c, k) => [c[0]*k, c[1]*k, c[2]*k];
const mix = (a, b, t) => [a[0]+t*(b[0]-a[0]), a[1]+t*(b[1]-a[1]), a[2]+t*(b[2]-a[2])];
const shade = (c, off) => times(c, 1-.35*off*off);

// Share of the trim colour on the torso; a: angle around the body, b: 0 shoulder .. 1 hip, n: repeats.
function pattern(kind, a, b, n) {
  const down = sin(6*PI*n*b), around = sin(5*n*a);
  switch (kind) {
    case 1: return soft(down);
    case 2: return soft(sin(10*PI*n*b));
    case 3: return soft(around);
    case 4: return soft(around*down);
    case 5: return soft(sin(6*n*a)*sin(8*PI*n*b)-.45);
    case 6: return soft((.16-abs(b-.3*n))*12);
    case 7: return soft((.28-abs(a*.6+1.3*(b-.45)))*8);
    default: return 0;
  }
}

class Canvas {
  constructor(height, width) {
    this.h = height; this.w = width; this.pixel = 1/height;
    this.rgb = new Float64Array(3*height*width);
  }
  // f(x, y, k) of every pixel; x is 0 in the middle, y runs down 0..1
  each(f) {
    for (let i = 0, k = 0; i < this.h; i++) for (let j = 0; j < this.w; j++, k++) f((j+.5-this.w/2)/this.h, (i+.5)/this.h, k);
  }
  at(k) { const n = this.h*this.w; return [this.rgb[k], this.rgb[n+k], this.rgb[2*n+k]]; }
  put(k, c) { const n = this.h*this.w; this.rgb[k] = c[0]; this.rgb[n+k] = c[1]; this.rgb[2*n+k] = c[2]; }
  // A shape over what is there: `shape` gives [distance, off axis]; `colour` is one, or a function of the pixel.
  paint(shape, colour, show = 1) {
    if (!(show > 0)) return;
    const [x0, y0, x1, y1] = shape.within || [-9, -9, 9, 9], to = (v, end) => clamp(floor(v), 0, end);
    const i0 = to(y0*this.h-1, this.h), i1 = to(y1*this.h+2, this.h), j0 = to(x0*this.h+this.w/2-1, this.w), j1 = to(x1*this.h+this.w/2+2, this.w);
    for (let i = i0; i < i1; i++) for (let j = j0; j < j1; j++) {
      const x = (j+.5-this.w/2)/this.h, y = (i+.5)/this.h, k = i*this.w+j;
      const [d, off] = shape(x, y), share = clamp(.5-d/this.pixel)*show;
      if (share > 0) this.put(k, mix(this.at(k), typeof colour === 'function' ? colour(x, y, off, k) : colour, share));
    }
  }
}
// A shape says within which rectangle it lies, so that pixels far from it are left alone.
const around = (cx, cy, rx, ry, f) => Object.assign(f, {within: [cx-rx, cy-ry, cx+rx, cy+ry]});
const ellipse = (cx, cy, rx, ry) => around(cx, cy, 2*rx, 2*ry, (x, y) => [(sqrt(((x-cx)/rx)**2+((y-cy)/ry)**2)-1)*min(rx, ry), 0]);
const box = (cx, cy, rx, ry, corner = .01) => around(cx, cy, max(rx, corner), max(ry, corner), (x, y) => {
  const qx = abs(x-cx)-rx+corner, qy = abs(y-cy)-ry+corner, ox = max(qx, 0), oy = max(qy, 0);
  return [sqrt(ox*ox+oy*oy)+min(max(qx, qy), 0)-corner, 0];
});
const limb = ([ax, ay], [bx, by], ra, rb) => around((ax+bx)/2, (ay+by)/2, abs(ax-bx)/2+max(ra, rb), abs(ay-by)/2+max(ra, rb), (x, y) => {
  const dx = bx-ax, dy = by-ay, t = clamp(((x-ax)*dx+(y-ay)*dy)/(dx*dx+dy*dy+1e-8));
  const r = ra+(rb-ra)*t, ox = x-ax-t*dx, oy = y-ay-t*dy, d = sqrt(ox*ox+oy*oy);
  return [d-r, clamp(d/r)];
});

function street(c, cam, shot) {
  c.each((x0, y, k) => {
    const x = x0+shot.pan, u = x*cam.texture_scale, v = y*cam.texture_scale;
    let t = 0;
    if (cam.texture === 1) t = .08*(sin(28*PI*v) > .86 || sin(14*PI*u+PI*floor(14*v-.21)) > .93);
    if (cam.texture === 2) t = .22*soft(sin(5.2*PI*u)+.1, 4)*soft(sin(8*PI*v)+.2, 4);
    if (cam.texture === 3) t = .1*soft(sin(6*PI*u), 6);
    if (cam.texture === 4) t = .07*(sin(31*u+5*sin(23*v))*sin(37*v+4*sin(19*u))+sin(71*u+3*sin(61*v)));
    const wall = cam.wall-t, depth = clamp((y-cam.horizon)/(1-cam.horizon)), gx = x/(.25+depth), gy = 1/(.12+depth);
    let tile = 0;
    if (cam.tiles === 1) tile = .07*abs(soft(sin(9*gx), 4)-soft(sin(6*gy), 4));
    if (cam.tiles === 2) tile = .16*soft(sin(5*gy+4*gx), 5);
    const ground = cam.ground*(.85+.25*depth)+tile, below = soft((y-cam.horizon)/c.pixel, 1);
    const grey = wall+below*(ground-wall), tint = cam.wall_tint+below*(cam.ground_tint-cam.wall_tint);
    const green = cam.texture === 4 ? .07*(1-below) : 0;
    c.put(k, [grey+tint-green, grey+.3*green, grey-tint-green]);
  });
}

function person(c, who, cam, when) {
  const yaw = cam.yaw+cam.spread*when.yaw, fx = sin(yaw), fz = cos(yaw);   // where forward points: right, towards the viewer
  const s = cam.distance*who.height*(1+.04*when.zoom), cx = .025*when.dx, top = .515-.5*s+.015*when.dy;
  const swing0 = who.gait*when.stride*sin(when.phase), body = y => (y-top)/s;
  const skin = PALETTES.skin[who.skin], hair = PALETTES.hair[who.hair], shoes = PALETTES.shoes[who.shoes], accent = PALETTES.accent[who.accent];
  const upper = times(PALETTES.upper[who.upper], who.tone), lower = times(PALETTES.lower[who.lower], who.tone), trim = PALETTES.upper[who.upper^1];
  const at = (X, Z, v) => [cx+s*(X*fz+Z*fx), top+s*v];
  const covered = (end, y) => soft((end-body(y))*s/c.pixel, 1);

  function leg(side, light) {
    const X = .048*who.build*side, swing = swing0*side, bend = swing-.5*when.stride*max(cos(when.phase)*side, 0);
    const hip = [X, 0, .49], knee = [X, .23*sin(swing), .49+.23*cos(swing)];
    const foot = [X*.9, knee[1]+.22*sin(bend), knee[2]+.22*cos(bend)];
    const end = who.lower_kind === 1 ? .70 : who.lower_kind === 2 ? 0 : .97, piped = who.stripe === 1 && who.lower_kind !== 2;
    for (const [a, b, ra, rb] of [[hip, knee, .052*who.build, .038*who.build], [knee, foot, .038*who.build, .026*who.build]])
      c.paint(limb(at(...a), at(...b), s*ra, s*rb), (x, y, off) => {
        const garment = mix(lower, trim, piped ? soft(.35-abs(off-.2), 3) : 0);
        return times(shade(mix(skin, garment, covered(end, y)), off), light);
      });
    const [x, y] = at(...foot), toe = [x+s*.055*fx, y+s*(.026+.008*fz)];
    c.paint(limb([x-s*.012*fx, y+s*.022], toe, s*.024, s*.018), times(shoes, light));
  }
  function arm(side, light) {
    const X = (.108*who.build+.012)*side, swing = -.75*swing0*side;
    const shoulder = [X, 0, .185], elbow = [X*1.1, .155*sin(swing), .185+.155*cos(swing)];
    const wrist = [X*1.08, elbow[1]+.14*sin(swing+.3), elbow[2]+.14*cos(swing+.3)];
    const end = who.sleeve === 0 ? .27 : .47, garment = who.sleeve === 2 ? trim : upper;
    for (const [a, b, ra, rb] of [[shoulder, elbow, .033, .028], [elbow, wrist, .028, .02]])
      c.paint(limb(at(...a), at(...b), s*ra*who.build, s*rb*who.build), (x, y, off) => times(shade(mix(skin, garment, covered(end, y)), off), light));
    const [x, y] = at(...wrist);
    c.paint(ellipse(x, y+s*.012, s*.019, s*.022), times(skin, light));
    c.paint(box(x, y+s*.085, s*.05, s*.045), times(accent, .9*light), who.bag === 3 && side === 1);
  }
  function torso() {
    const wide = sqrt(fz*fz+(.62*fx)**2), end = who.coat === 2 ? .66 : .52, turn = atan2(fx, fz);
    const half = y => { const v = body(y); return s*((v < .36 ? .122-.12*max(v-.16, 0) : .098+.05*(v-.36))*who.build-.09*clamp((.175-v)/.04)**2)*wide; };
    c.paint((x, y) => { const v = body(y); return [max(abs(x-cx)-half(y), s*max(.132-v, v-end)), 0]; }, (x, y) => {
      const v = body(y), across = (x-cx)/max(half(y), 1e-3);
      const share = pattern(who.pattern, asin(clamp(across, -.999, .999))-turn, (v-.14)/.38, who.repeat);
      const folds = 1+.05*sin(30*v+9*across+when.fold)*(v > .3);
      return shade(times(mix(upper, trim, share), folds), clamp(abs(across)));
    });
  }
  function skirt() {
    if (who.lower_kind !== 2) return;
    const half = y => s*who.build*(.1+.17*(body(y)-.48))*(.75+.25*abs(fz)), end = who.stripe === 2 ? .82 : .70;
    c.paint((x, y) => { const v = body(y); return [max(abs(x-cx)-half(y), s*max(.46-v, v-end)), 0]; }, (x, y) => shade(lower, clamp(abs(x-cx)/half(y))));
  }
  function backpack(behind) {
    if (who.bag !== 1) return;
    const away = soft(-fz*4, 1);
    c.paint(box(...at(0, -.085, .275), s*(.078*abs(fz)+.05*abs(fx)), s*.115, .02), times(accent, .85), behind ? 1-away : away);
    if (behind) return;
    c.paint(box(...at(0, -.09, .32), s*.05*abs(fz), s*.035), times(accent, .6), away);
    for (const q of [-1, 1]) c.paint(limb(at(.06*q, .06, .15), at(.07*q, .06, .36), s*.011, s*.011), times(accent, .6), 1-away);
  }
  function shoulderBag() {
    if (who.bag !== 2) return;
    c.paint(limb(at(-.07, 0, .15), at(.12*who.build, 0, .5), s*.009, s*.009), times(accent, .6));
    c.paint(box(...at(.125*who.build, 0, .53), s*.06, s*.05), accent);
  }
  function head() {
    const h = s*who.head, [x, y] = at(0, .006, .068), face = soft(fz+.35);
    c.paint(limb(at(0, 0, .10), at(0, 0, .15), h*.026, h*.03), times(skin, .85));
    c.paint(box(x-h*.012*fx, y+h*.04, h*.05, h*.075, .03), hair, who.hair_style === 1);
    c.paint(ellipse(x-h*.02*fx, y-h*.062, h*.026, h*.026), hair, who.hair_style === 2);
    c.paint(ellipse(x-h*.008*fx, y-h*.004, h*.048, h*.06), who.hair_style === 3 ? skin : hair);
    const nx = x+h*.018*fx, ny = y+h*.012;
    c.paint(ellipse(nx, ny, h*.038*(.7+.3*abs(fz)), h*.046), skin, face);
    for (const q of [-1, 1]) c.paint(ellipse(nx+h*(.015*q*fz+.012*fx), ny-h*.006, h*.006, h*.005), times(skin, .25), face);
    c.paint(box(x+h*.04*fx, y-h*.025, h*(.045+.02*abs(fx)), h*.007, .004), times(accent, .8), who.hat === 6 ? face : 0);
    const cap = ellipse(x-h*.004*fx, y-h*.01, h*.051, h*.06);
    c.paint((px, py) => [max(cap(px, py)[0], py-(y-h*.022)), 0], accent, who.hat >= 6);
  }
  const near = -sign(fx);
  const shadow = ellipse(cx, top+s*.985, s*.16, s*.018);
  c.paint(shadow, (x, y, off, k) => times(c.at(k), .55), .8);
  backpack(true);
  arm(-near, .8); leg(-near, .82); leg(near, 1);
  skirt(); torso();
  backpack(false); shoulderBag();
  arm(near, 1); head();
}

function occluder(c, shot) {
  const g = shot.occluder_grey, grey = [g, g, g], x = shot.occluder_x;
  if (shot.occluder === 0) c.paint(box(.2*x, 1.02, .16, .2, .02), grey);
  if (shot.occluder === 1) c.paint(box(.18*sign(x)+.04*x, .5, .022, .6), grey);
}

// What the camera makes of the scene: light, colour cast, gamma, a small blur.
function expose(c, cam, shot, grain) {
  const {h, w} = c, n = h*w, r = Math.ceil(.015*h), cast = [cam.red, 1, cam.blue], kernel = [];
  for (let i = -r; i <= r; i++) kernel.push(Math.exp(-.5*(i/max(cam.blur*h, .05))**2));
  const sum = kernel.reduce((a, b) => a+b), lit = new Float64Array(3*n), across = new Float64Array(3*n), out = new Float32Array(3*n);
  for (let ch = 0; ch < 3; ch++) c.each((x, y, k) => {
    const light = cam.gain*(1+.1*shot.light)*(1+cam.side_light*x);
    lit[ch*n+k] = clamp(clamp(c.rgb[ch*n+k])*light*cast[ch], 1e-4, 1)**cam.gamma;
  });
  for (const [from, to, wide] of [[lit, across, true], [across, lit, false]])
    for (let ch = 0; ch < 3; ch++) for (let i = 0; i < h; i++) for (let j = 0; j < w; j++) {
      let v = 0;
      for (let q = -r; q <= r; q++) v += kernel[q+r]/sum*from[ch*n+(wide ? i*w+clamp(j+q, 0, w-1) : clamp(i+q, 0, h-1)*w+j)];
      to[ch*n+i*w+j] = v;
    }
  for (let k = 0; k < 3*n; k++) out[k] = Math.round(clamp(lit[k]+(grain ? cam.noise*grain[k] : 0))*255)/255;
  return out;
}

// A person, a camera, a moment (rows of PERSON, CAMERA, SHOT) to a picture (3,H,W) in [0,1] of whole grey levels.
export function render(who, cam, shot, height = 64, width = 32, grain = null) {
  const c = new Canvas(height, width);
  street(c, cam, shot); person(c, who, cam, shot); occluder(c, shot);
  return expose(c, cam, shot, grain);
}

// Standard normal numbers from a seed: dice of this page, not PyTorch's.
export function normals(n, seed) {
  let a = seed >>> 0;
  const next = () => { a = a+0x6D2B79F5|0; let t = Math.imul(a^a >>> 15, 1|a); t = t+Math.imul(t^t >>> 7, 61|t)^t; return ((t^t >>> 14) >>> 0)/4294967296; };
  const out = new Float32Array(n);
  for (let i = 0; i < n; i += 2) {
    const r = sqrt(-2*Math.log(1-next())), angle = 2*PI*next();
    out[i] = r*cos(angle);
    if (i+1 < n) out[i+1] = r*sin(angle);
  }
  return out;
}
