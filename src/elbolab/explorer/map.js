// The map of the test set's posterior means: a mark an image, written as its class where there are several, and the marks that move.
"use strict";

const SIDE = 400;
const MARGIN = 14;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

class LatentMap {
  // `points` are (x, y) in standard deviations, y upwards; `on` has preview(i), pick(i) and release().
  constructor(svg, points, labels, on) {
    this.svg = svg;
    const axes = [0, 1].map((axis) => {
      const values = points.map((point) => point[axis]);
      const [low, high] = [Math.min(...values), Math.max(...values)];
      return (value) => MARGIN + ((value - low) / (high - low || 1)) * (SIDE - 2 * MARGIN);
    });
    this.place = ([x, y]) => [axes[0](x), SIDE - axes[1](y)];
    const [left, top] = this.place([0, 0]);
    this.add("path", { class: "axes", d: `M0 ${top}H${SIDE}M${left} 0V${SIDE}` });
    this.places = points.map(this.place);
    const hasClasses = new Set(labels).size > 1;
    this.places.forEach(([x, y], i) => {
      this.add("text", { x, y, class: `mark c${labels[i] % 10}` }).textContent = hasClasses ? labels[i] : "•";
    });
    this.here = this.add("path", { class: "here", d: "M-9 0H-3M3 0H9M0 -9V-3M0 3V9" });
    this.ends = ["A", "B"].map((name) => {
      const end = this.add("g", { class: "end" });
      this.add("circle", { r: 9 }, end);
      this.add("text", { x: 14, y: -9 }, end).textContent = name;
      return end;
    });
    this.at = 0;
    this.listen(on);
  }

  add(tag, attributes, parent = this.svg) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return parent.appendChild(node);
  }

  listen(on) {
    const preview = (i) => {
      if (i !== this.shown) on.preview((this.shown = i));
    };
    const release = () => {
      this.shown = undefined;
      on.release();
    };
    this.svg.addEventListener("pointermove", (event) => preview(this.nearest(event)));
    this.svg.addEventListener("pointerleave", release);
    this.svg.addEventListener("blur", release);
    this.svg.addEventListener("click", (event) => on.pick(this.nearest(event)));
    this.svg.addEventListener("keydown", (event) => {
      if (event.key in ARROWS) preview(this.next(ARROWS[event.key]));
      else if (event.key === "Enter" || event.key === " ") on.pick(this.at);
      else return;
      event.preventDefault();
    });
  }

  nearest({ clientX, clientY }) {
    const box = this.svg.getBoundingClientRect();
    const [x, y] = [((clientX - box.left) / box.width) * SIDE, ((clientY - box.top) / box.height) * SIDE];
    return this.least(([left, top]) => Math.hypot(left - x, top - y));
  }

  // The nearest mark within 45 degrees of an arrow's direction, else the one where the map stands.
  next([across, down]) {
    const [x, y] = this.places[this.at];
    return this.least(([left, top], i) => {
      const along = (left - x) * across + (top - y) * down;
      const aside = Math.abs((left - x) * down - (top - y) * across);
      if (i === this.at) return Number.MAX_VALUE;
      return along > 0 && aside <= along ? Math.hypot(along, aside) : Infinity;
    });
  }

  least(distance) {
    const distances = this.places.map(distance);
    return distances.indexOf(Math.min(...distances));
  }

  move(node, point) {
    const [x, y] = this.place(point).map((value) => Math.min(Math.max(value, 0), SIDE));
    node.setAttribute("transform", `translate(${x} ${y})`);
  }
}
