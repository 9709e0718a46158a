// The decoder of a trained run: base64 to numbers, and a latent vector to an expected image.
"use strict";

function bytes(text) {
  const letters = atob(text);
  const found = new Uint8Array(letters.length);
  for (let i = 0; i < found.length; i++) found[i] = letters.charCodeAt(i);
  return found;
}

const floats = (text) => new Float32Array(bytes(text).buffer);

const softplus = (value) => Math.max(value, 0) + Math.log1p(Math.exp(-Math.abs(value)));

// Each takes a flat input, the layer and its weights as PyTorch keeps them, and gives a flat output.
const LAYERS = {
  relu: (x) => x.map((value) => Math.max(value, 0)),
  tanh: (x) => x.map(Math.tanh),
  elu: (x) => x.map((value) => (value > 0 ? value : Math.expm1(value))),
  // The mean of a continuous Bernoulli by its logit.
  continuous_bernoulli: (x) =>
    x.map((value) => (Math.abs(value) < 1e-3 ? 0.5 + value / 12 : -1 / Math.expm1(-value) - 1 / value)),
  glu: (x) => x.slice(0, x.length / 2).map((value, i) => value / (1 + Math.exp(-x[x.length / 2 + i]))),
  // The mean of a logistic cut to [0, 1], by activations of its locations and then of its log-scales.
  discretised_logistic(x, { least }) {
    const half = x.length / 2;
    return x.subarray(0, half).map((value, i) => {
      const scale = Math.exp(least / (1 + Math.exp(x[half + i])));
      return scale * (softplus((value + 0.5) / scale) - softplus((value - 0.5) / scale));
    });
  },
  sigmoid: (x) => x.map((value) => 1 / (1 + Math.exp(-value))),

  linear(x, layer, weight, bias) {
    return bias.map((start, row) => {
      let sum = start;
      for (let i = 0, at = row * x.length; i < x.length; i++, at++) sum += weight[at] * x[i];
      return sum;
    });
  },

  crop(x, { inputs, outputs, top, left }) {
    const [, height, width] = inputs;
    const [maps, rows, columns] = outputs;
    const y = new Float32Array(maps * rows * columns);
    for (let map = 0; map < maps; map++) {
      for (let row = 0; row < rows; row++) {
        const from = (map * height + top + row) * width + left;
        y.set(x.subarray(from, from + columns), (map * rows + row) * columns);
      }
    }
    return y;
  },

  conv_transpose(x, { inputs, outputs, kernel, stride, padding }, weight, bias) {
    const [channels, height, width] = inputs;
    const [maps, rows, columns] = outputs;
    const y = new Float32Array(maps * rows * columns);
    bias.forEach((value, map) => y.fill(value, map * rows * columns, (map + 1) * rows * columns));
    let from = 0;
    for (let channel = 0; channel < channels; channel++) {
      for (let top = -padding; top < height * stride - padding; top += stride) {
        for (let left = -padding; left < width * stride - padding; left += stride) {
          const value = x[from++];
          if (value === 0) continue; // Many are, after a ReLU.
          const [firstRow, lastRow] = [Math.max(-top, 0), Math.min(rows - top, kernel)];
          const [firstColumn, lastColumn] = [Math.max(-left, 0), Math.min(columns - left, kernel)];
          for (let map = 0; map < maps; map++) {
            for (let row = firstRow; row < lastRow; row++) {
              const at = ((channel * maps + map) * kernel + row) * kernel;
              const to = (map * rows + top + row) * columns + left;
              for (let column = firstColumn; column < lastColumn; column++) {
                y[to + column] += value * weight[at + column];
              }
            }
          }
        }
      }
    }
    return y;
  },
};

// A function from a latent vector to the pixels of its expected image, channel by channel, in [0, 1].
function makeDecoder(layers, weights) {
  let at = 0;
  const take = (count) => weights.subarray(at, (at += count));
  const steps = layers.map((layer) => [layer, ...layer.weights.map(take)]);
  return (z) =>
    steps
      .reduce((x, [layer, ...own]) => LAYERS[layer.kind](x, layer, ...own), Float32Array.from(z))
      .map((pixel) => Math.min(Math.max(pixel, 0), 1));
}

// Paint pixels of `shape` (C, H, W), from 0 to `white`, on a canvas; none leave it empty.
function paint(canvas, [channels, height, width], pixels, white) {
  canvas.width = width;
  canvas.height = height;
  if (!pixels) return;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  const area = width * height;
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) {
      picture.data[4 * i + c] = Math.round((pixels[(c % channels) * area + i] * 255) / white);
    }
    picture.data[4 * i + 3] = channels === 4 ? Math.round((pixels[3 * area + i] * 255) / white) : 255;
  }
  context.putImageData(picture, 0, 0);
}
