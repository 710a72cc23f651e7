"use strict";
const SIDE = 280, PEN = 20;
const drawing = document.getElementById("drawing"), pen = drawing.getContext("2d", { willReadFrequently: true });
const seen = document.getElementById("seen").getContext("2d");
const answer = document.getElementById("answer"), bars = document.getElementById("bars"), latency = document.getElementById("latency");
let last = null, busy = false, again = false, drawings = 0;

async function begin() {
  for (const name of await (await fetch("/classes")).json()) {
    const row = bars.appendChild(document.createElement("div"));
    row.className = "row";
    row.innerHTML = `<span></span><span class="bar"><i></i></span><span></span>`;
    row.firstChild.textContent = name;
  }
  clear();
}

function clear() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, SIDE, SIDE);
  drawings++;  // an answer under way is to the drawing before
  show({ empty: true });
}

function show(result) {
  const chances = result.probabilities || new Array(bars.children.length).fill(0);
  answer.textContent = result.empty ? "–" : result.answer;
  latency.textContent = result.empty ? "\u00a0" : `${result.microseconds.toFixed(0)} µs in ${result.file}, one thread${result.remark ? `; ${result.remark}` : ""}`;
  chances.forEach((chance, digit) => {
    const row = bars.children[digit];
    row.querySelector("i").style.width = `${100 * chance}%`;
    row.lastChild.textContent = result.empty ? "" : `${(100 * chance).toFixed(1)} %`;
  });
  const image = seen.createImageData(28, 28), pixels = result.pixels || new Array(784).fill(0);
  pixels.forEach((value, at) => image.data.set([value, value, value, 255], 4 * at));
  seen.putImageData(image, 0, 0);
}

async function ask() {
  if (busy) { again = true; return; }
  busy = true;
  const number = drawings, rgba = pen.getImageData(0, 0, SIDE, SIDE).data, grey = new Uint8Array(SIDE * SIDE);
  for (let at = 0; at < grey.length; at++) grey[at] = rgba[4 * at];
  try {
    const reply = await fetch("/predict", { method: "POST", body: grey });
    if (!reply.ok) throw new Error(await reply.text());
    const result = await reply.json();
    if (number === drawings) show(result);
  } catch (error) {
    latency.textContent = `no answer: ${error.message}; is pipeline demo still running?`;
  }
  busy = false;
  if (again) { again = false; ask(); }
}

function point(event) {
  const box = drawing.getBoundingClientRect();
  return [(event.clientX - box.left) * SIDE / box.width, (event.clientY - box.top) * SIDE / box.height];
}

function line(from, to) {
  pen.strokeStyle = "#fff";
  pen.lineWidth = PEN;
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(...to);
  pen.stroke();
}

drawing.addEventListener("pointerdown", event => { drawing.setPointerCapture(event.pointerId); last = point(event); line(last, last); ask(); });
drawing.addEventListener("pointermove", event => { if (last) { const to = point(event); line(last, to); last = to; ask(); } });
for (const name of ["pointerup", "pointercancel"]) drawing.addEventListener(name, () => { last = null; ask(); });
document.getElementById("clear").addEventListener("click", clear);
begin();
