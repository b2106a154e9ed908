// A decoder's forward pass in plain JavaScript. Every block of vaelib/blocks.py is here under
// its own name, and does the same: a test runs each both ways.
//
// A tensor is {data: Float32Array, shape: [C, H, W]} or {data, shape: [n]}, one image at a time.

const forward = {
  Sequential: (x, m) => m.children.reduce((h, child) => run(child, h), x),
  ConvBlock: (x, m) => run(m.act, run(m.norm, run(m.conv, x))),
  Downsample: (x, m) => run(m.conv, x),
  Upsample: (x, m) => run(m.shuffle, run(m.conv, x)),

  ResidualBlock(x, m) {
    let h = run(m.conv1, run(m.act, run(m.norm1, x)));
    h = run(m.conv2, run(m.act, run(m.norm2, h)));
    return { data: h.data.map((v, i) => v + x.data[i]), shape: x.shape };
  },

  // y = W x + b; W (out, in) lies row by row
  Linear(x, m) {
    const out = new Float32Array(m.out_features), n = m.in_features;
    for (let o = 0; o < out.length; o++) {
      let sum = m.bias ? m.bias[o] : 0;
      for (let i = 0, w = o * n; i < n; i++, w++) sum += m.weight[w] * x.data[i];
      out[o] = sum;
    }
    return { data: out, shape: [out.length] };
  },

  // 3x3, padding 1: every pixel's neighbourhood becomes a column, then one matrix product
  Conv2d(x, m) {
    const [channels, height, width] = x.shape, s = m.stride;
    const rows = Math.floor((height - 1) / s) + 1, columns = Math.floor((width - 1) / s) + 1;
    const n = rows * columns, patches = new Float32Array(9 * channels * n);
    let at = 0;
    for (let c = 0; c < channels; c++)
      for (let dy = -1; dy <= 1; dy++)
        for (let dx = -1; dx <= 1; dx++)
          for (let i = 0; i < rows; i++) {
            const y = i * s + dy, line = (c * height + y) * width + dx;
            if (y < 0 || y >= height) { at += columns; continue; }
            for (let j = 0; j < columns; j++, at++) {
              const inside = j * s + dx >= 0 && j * s + dx < width;
              if (inside) patches[at] = x.data[line + j * s];
            }
          }
    const out = product(m.weight, patches, m.out_channels, 9 * channels, n);
    if (m.bias)
      for (let o = 0; o < m.out_channels; o++)
        for (let p = o * n; p < (o + 1) * n; p++) out[p] += m.bias[o];
    return { data: out, shape: [m.out_channels, rows, columns] };
  },

  // mean 0 and variance 1 over each group of channels, then a factor and a shift per channel
  GroupNorm(x, m) {
    const [channels, height, width] = x.shape, n = height * width;
    const out = new Float32Array(x.data.length), size = (channels / m.num_groups) * n;
    for (let start = 0; start < out.length; start += size) {
      let mean = 0, square = 0;
      for (let i = start; i < start + size; i++) mean += x.data[i];
      mean /= size;
      for (let i = start; i < start + size; i++) square += (x.data[i] - mean) ** 2;
      const factor = 1 / Math.sqrt(square / size + m.eps);
      for (let i = start; i < start + size; i++) {
        const c = Math.floor(i / n);
        out[i] = (x.data[i] - mean) * factor * m.weight[c] + m.bias[c];
      }
    }
    return { data: out, shape: x.shape };
  },

  SiLU: (x) => ({ data: x.data.map((v) => v / (1 + Math.exp(-v))), shape: x.shape }),
  Tanh: (x) => ({ data: x.data.map(Math.tanh), shape: x.shape }),

  // channel 4 c + 2 a + b becomes pixel (2 i + a, 2 j + b) of channel c
  PixelShuffle(x) {
    const [channels, height, width] = x.shape, out = new Float32Array(x.data.length);
    for (let c = 0, from = 0; c < channels; c++) {
      const a = (c >> 1) & 1, b = c & 1, plane = (c >> 2) * 4 * height * width;
      for (let i = 0; i < height; i++)
        for (let j = 0; j < width; j++, from++)
          out[plane + (2 * i + a) * 2 * width + 2 * j + b] = x.data[from];
    }
    return { data: out, shape: [channels / 4, 2 * height, 2 * width] };
  },

  // z -> the likelihood's mean, cut to the image's size
  Decoder(z, m) {
    let h = { data: run(m.from_latent, z).data, shape: m.shape_in };
    h = run(m.conv_out, run(m.up_blocks, run(m.mid_block, h)));
    const [channels, height, width] = m.image_shape, [, , wide] = h.shape;
    const plane = h.shape[1] * wide, out = new Float32Array(channels * height * width);
    for (let c = 0, to = 0; c < channels; c++)
      for (let i = 0; i < height; i++)
        for (let j = 0; j < width; j++, to++) out[to] = h.data[c * plane + i * wide + j];
    return { data: out, shape: m.image_shape };
  },
  MLPDecoder(z, m) {
    const out = run(m.to_image, run(m.hidden, z)).data;
    return { data: out.subarray(0, m.image_shape.reduce((a, b) => a * b)), shape: m.image_shape };
  },
};

function run(module, x) {
  return forward[module.type](x, module);
}

// C = A B with A (m, k) and B (k, n), in tiles of 4 x 4 whose sums stay in registers
function product(A, B, m, k, n) {
  const C = new Float32Array(m * n);
  for (let r = 0; r < m; r += 4) {
    const rows = Math.min(4, m - r), a0 = r * k;
    const a1 = rows > 1 ? a0 + k : a0, a2 = rows > 2 ? a1 + k : a0, a3 = rows > 3 ? a2 + k : a0;
    for (let c = 0; c < n; c += 4) {
      const columns = Math.min(4, n - c), d1 = columns > 1 ? 1 : 0, d2 = columns > 2 ? 2 : 0;
      const d3 = columns > 3 ? 3 : 0;
      let s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
      let s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;
      for (let i = 0, b = c; i < k; i++, b += n) {
        const b0 = B[b], b1 = B[b + d1], b2 = B[b + d2], b3 = B[b + d3];
        const w0 = A[a0 + i], w1 = A[a1 + i], w2 = A[a2 + i], w3 = A[a3 + i];
        s00 += w0 * b0; s01 += w0 * b1; s02 += w0 * b2; s03 += w0 * b3;
        s10 += w1 * b0; s11 += w1 * b1; s12 += w1 * b2; s13 += w1 * b3;
        s20 += w2 * b0; s21 += w2 * b1; s22 += w2 * b2; s23 += w2 * b3;
        s30 += w3 * b0; s31 += w3 * b1; s32 += w3 * b2; s33 += w3 * b3;
      }
      const sums = [s00, s01, s02, s03, s10, s11, s12, s13, s20, s21, s22, s23, s30, s31, s32, s33];
      for (let i = 0; i < rows; i++)
        for (let j = 0; j < columns; j++) C[(r + i) * n + c + j] = sums[4 * i + j];
    }
  }
  return C;
}

// IEEE half precision to single
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// base64 of half-precision numbers -> Float32Array
function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const halves = new Uint16Array(bytes.buffer), out = new Float32Array(halves.length);
  for (let i = 0; i < out.length; i++) out[i] = half(halves[i]);
  return out;
}

// Where the exported description says {at, length}, put that part of the weights
function attach(module, weights) {
  for (const [key, value] of Object.entries(module)) {
    if (!value || typeof value !== "object") continue;
    if (Object.hasOwn(value, "at")) module[key] = weights.subarray(value.at, value.at + value.length);
    else attach(value, weights);
  }
  return module;
}

// The mean of a pixel from the decoder's output v, by the likelihood's name. This is the list of
// the likelihoods that a page can show: vaelib/export.py reads it here.
const means = {
  bernoulli: (v) => 1 / (1 + Math.exp(-v)),
  // 1 / (1 - exp(-v)) - 1 / v
  continuous_bernoulli: (v) => Math.abs(v) < 1e-2 ? 0.5 + v / 12 : -1 / Math.expm1(-v) - 1 / v,
  gaussian: (v) => v,
  learned_gaussian: (v) => v,
  pixel_gaussian: (v) => v,
  sigmoid_gaussian: (v) => 1 / (1 + Math.exp(-v)),
};

// The mean of p(x | z) as bytes
function toBytes(x, likelihood) {
  return Uint8ClampedArray.from(x.data, (v) => 255 * means[likelihood](v));
}

// A draw from a learned prior, from standard normal noise; its parameters as vaelib/export.py
// describes them
const priors = {
  // one Gaussian for each pseudo-input, of which `share`, 0 to 1, names one
  VampPrior(noise, m, share) {
    const n = noise.length, start = n * Math.floor(share * (m.loc.length / n));
    return noise.map((e, d) => m.loc[start + d] + m.scale[start + d] * e);
  },

  // the inverse of each affine coupling, the last one first
  Flow(noise, m) {
    const z = noise.slice();
    for (const { kept, moved, hyper } of m.couplings.slice().reverse()) {
      const kept_z = Float32Array.from(kept, (d) => z[d]);
      const found = run(hyper, { data: kept_z, shape: [kept.length] }).data; // shift, log scale
      moved.forEach((d, i) => {
        const log_scale = found[2 * i + 1] / (1 + Math.abs(found[2 * i + 1] / m.bound));
        z[d] = (z[d] - found[2 * i]) * Math.exp(-log_scale);
      });
    }
    return z;
  },
};
