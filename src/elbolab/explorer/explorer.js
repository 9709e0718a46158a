// The page: one latent vector a run, which the map, the sliders, the prior and a walk between two images set.
"use strict";

const data = JSON.parse(document.getElementById("payload").textContent);
const images = bytes(data.images);
const size = data.shape.reduce((product, side) => product * side);
const image = (i) => images.subarray(i * size, (i + 1) * size);
// Images without labels are of one class.
const hasClasses = new Set(data.labels).size > 1;
const named = (i) => `test image ${data.index[i]}` + (hasClasses ? `, class ${data.names[data.labels[i]]}` : "");
const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

class Panel {
  constructor(root, strip, run) {
    const rows = (text) => {
      const all = floats(text);
      const count = all.length / run.latent_dim;
      return Array.from({ length: count }, (_, i) => all.subarray(i * run.latent_dim, (i + 1) * run.latent_dim));
    };
    this.root = root;
    this.run = run;
    this.decode = makeDecoder(run.layers, floats(run.weights));
    this.means = rows(run.means);
    this.draws = rows(run.draws);
    [this.centre] = rows(run.centre);
    this.directions = rows(run.directions);
    this.map = new LatentMap(this.find("svg"), this.means.map((mean) => this.point(mean)), data.labels, explorer);
    this.sliders = [...root.querySelectorAll("input")];
    this.sliders.forEach((slider, k) => slider.addEventListener("input", () => this.slide(k, Number(slider.value))));
    this.find(".reset").addEventListener("click", () => this.reset());
    this.find(".draw").addEventListener("click", () => {
      const z = this.draws[Math.floor(Math.random() * this.draws.length)];
      this.hold({ z, words: "a draw from the prior" });
    });
    this.current = strip.querySelector(".current");
    this.steps = [...strip.querySelectorAll(".steps canvas")];
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  // Where z stands along each leading direction, in standard deviations of the test set's means.
  coordinates(z) {
    const offset = z.map((value, d) => value - this.centre[d]);
    return this.directions.map((direction, k) => dot(direction, offset) / this.run.deviations[k]);
  }

  // Its place on the map; a space of one dimension has no second direction.
  point(z) {
    const [x = 0, y = 0] = this.coordinates(z);
    return [x, y];
  }

  ofImage(i) {
    return { z: this.means[i], words: `posterior mean of ${named(i)}`, image: i };
  }

  between([a, b], t) {
    return this.means[a].map((value, d) => (1 - t) * value + t * this.means[b][d]);
  }

  show({ z, words, image: shown }) {
    this.pixels = this.decode(z);
    paint(this.find(".decoded"), data.shape, this.pixels, 1);
    paint(this.find(".original"), data.shape, shown === undefined ? undefined : image(shown), 255);
    this.find(".decoded").setAttribute("aria-label", `decoded: ${words}`);
    this.find(".original").setAttribute("aria-label", shown === undefined ? "no test image" : named(shown));
    this.find(".words").textContent = words;
    this.coordinates(z).forEach((value, k) => {
      this.sliders[k].value = value;
      this.sliders[k].nextElementSibling.textContent = value.toFixed(2).replace("-", "\u2212");
    });
    this.map.move(this.map.here, this.point(z));
    this.map.at = shown ?? this.map.at;
  }

  hold(state) {
    this.held = state;
    this.show(state);
  }

  reset() {
    this.hold({ z: this.centre, words: "mean of all posterior means" });
  }

  slide(k, value) {
    const { z, words, image: kept } = this.held;
    const far = (value - this.coordinates(z)[k]) * this.run.deviations[k];
    const moved = z.map((old, d) => old + far * this.directions[k][d]);
    this.hold({ z: moved, words: words.replace(/, moved$/, "") + ", moved", image: kept });
  }

  drawWalk(picks) {
    this.map.ends.forEach((end, which) => this.map.move(end, this.point(this.means[picks[which]])));
    this.steps.forEach((canvas, i) => {
      paint(canvas, data.shape, this.decode(this.between(picks, i / (this.steps.length - 1))), 1);
    });
  }
}

const walker = document.getElementById("walker");
const explorer = {
  panels: [],
  picks: [0, Math.max(data.labels.findIndex((label) => label !== data.labels[0]), 0)],
  turn: 0,

  decode: (z, run = 0) => explorer.panels[run].decode(z),
  preview: (i) => explorer.panels.forEach((panel) => panel.show(panel.ofImage(i))),
  release: () => explorer.panels.forEach((panel) => panel.show(panel.held)),

  // The test image i becomes A and B in turn, in every run.
  pick(i) {
    walker.value = explorer.turn;
    explorer.picks[explorer.turn] = i;
    explorer.turn = 1 - explorer.turn;
    explorer.drawEnds();
    for (const panel of explorer.panels) {
      panel.hold(panel.ofImage(i));
      panel.drawWalk(explorer.picks);
      paint(panel.current, data.shape, panel.pixels, 1);
    }
  },

  walk(t) {
    for (const panel of explorer.panels) {
      panel.hold({ z: panel.between(explorer.picks, t), words: `${Math.round(100 * t)} % of the way from A to B` });
      paint(panel.current, data.shape, panel.pixels, 1);
    }
  },

  drawEnds() {
    explorer.picks.forEach((i, which) => {
      const end = document.getElementById(`end-${which}`);
      const text = `${"AB"[which]}: ${named(i)}`;
      paint(end.querySelector("canvas"), data.shape, image(i), 255);
      end.querySelector("canvas").setAttribute("aria-label", text);
      end.querySelector("figcaption").textContent = text;
    });
  },
};

data.runs.forEach((run, i) => {
  explorer.panels.push(new Panel(document.getElementById(`panel-${i}`), document.getElementById(`strip-${i}`), run));
});
walker.addEventListener("input", () => explorer.walk(Number(walker.value)));
explorer.pick(explorer.picks[0]);
