// One side: what runs there, its latency now and of late, its five likeliest answers.

const KEPT = 120; // latencies in the trace
const template = document.getElementById("lane");

export class LaneView {
  constructor(parent, onSwitch) {
    parent.append(template.content.cloneNode(true));
    this.root = parent.lastElementChild;
    this.select = this.root.querySelector("select");
    this.select.addEventListener("change", () => onSwitch(JSON.parse(this.select.value)));
    this.latencies = [];
    this.runs = "";
  }

  /** lane: what runs. choices: what could. fps: what this one could do alone, or null. */
  status(lane, choices, fps) {
    const options = choices.map((choice) => JSON.stringify(choice));
    const runs = JSON.stringify(lane);
    if (!options.includes(runs)) options.unshift(runs);
    if (options.join() !== this.options) {
      this.options = options.join();
      this.select.replaceChildren(
        ...options.map((option) => {
          const { variant, backend } = JSON.parse(option);
          return new Option(`${variant} · ${backend}`, option);
        }),
      );
      this.select.value = runs;
    }
    if (runs !== this.runs) {
      this.runs = runs;
      this.latencies = [];
      this.select.value = runs;
    }
    this.text(".alone", fps === null ? "" : `${number(fps)} / s alone`);
  }

  /** live: whether it belongs to the trace. */
  answer(answer, live) {
    this.precision = answer.precision.toUpperCase();
    this.text(".precision", this.precision);
    if (live && answer.latency_ms !== null) {
      this.latencies.push(answer.latency_ms);
      if (this.latencies.length > KEPT) this.latencies.shift();
    }
    this.shown = live && !answer.error ? this.median() : answer.latency_ms;
    this.text(".ms", this.shown === null ? "–" : number(this.shown));
    this.root.querySelector(".latency").title = live ? `median of the last ${this.latencies.length}` : "of this picture";
    this.text(".failure", answer.error ?? "");
    this.root.querySelector(".failure").hidden = !answer.error;
    this.bars(answer.top);
  }

  median() {
    const sorted = [...this.latencies].sort((a, b) => a - b);
    return sorted.length ? sorted[sorted.length >> 1] : null;
  }

  busy(is) {
    this.select.disabled = is;
    this.root.classList.toggle("busy", is);
    if (!is) this.select.value = this.runs;
  }

  bars(top) {
    const list = this.root.querySelector("ol");
    while (list.children.length < top.length) {
      const item = document.createElement("li");
      for (const name of ["name", "share", "bar"]) {
        item.append(Object.assign(document.createElement("span"), { className: name }));
      }
      list.append(item);
    }
    while (list.children.length > top.length) list.lastElementChild.remove();
    top.forEach(({ name, probability }, i) => {
      const [label, share, bar] = list.children[i].children;
      set(label, name);
      label.title = name;
      set(share, probability === null ? "–" : `${(100 * probability).toFixed(1)} %`);
      bar.style.setProperty("--share", Math.min(probability ?? 0, 1));
    });
  }

  /** Latency of the last pictures, from 0 to `most` ms: one scale for all sides, so that they compare. */
  trace(most) {
    const canvas = this.root.querySelector(".trace");
    const scale = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
    if (canvas.width !== Math.round(width)) canvas.width = Math.round(width);
    if (canvas.height !== Math.round(height)) canvas.height = Math.round(height);
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    if (this.latencies.length < 2) return;
    const x = (i) => (width * (KEPT - this.latencies.length + i)) / (KEPT - 1);
    const y = (ms) => height - (height * ms) / most;
    pen.beginPath();
    this.latencies.forEach((ms, i) => pen.lineTo(x(i), y(ms)));
    pen.strokeStyle = getComputedStyle(canvas).color;
    pen.lineWidth = 1.6 * scale;
    pen.lineJoin = "round";
    pen.stroke();
    pen.lineTo(width, height);
    pen.lineTo(x(0), height);
    pen.globalAlpha = 0.14;
    pen.fillStyle = pen.strokeStyle;
    pen.fill();
    pen.globalAlpha = 1;
  }

  text(selector, text) {
    set(this.root.querySelector(selector), text);
  }
}

/** Text of an element, touched only where it changes. */
export function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Three digits are what a figure of a running demo is good for. */
export function number(value) {
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
