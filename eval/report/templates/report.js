"use strict";
// Before and after under one slider. Without this script the pictures stand side by side, which they also do in print.
for (const picture of document.querySelectorAll(".picture")) {
  const slider = picture.querySelector(".slider");
  const pair = document.createElement("div");
  pair.className = "pair";
  for (const role of ["candidate", "reference"]) {
    const copy = picture.querySelector(`img[data-role="${role}"]`).cloneNode();
    copy.alt = "";
    copy.draggable = false;
    pair.append(copy);
  }
  const range = document.createElement("input");
  Object.assign(range, { type: "range", min: 0, max: 100, step: 1, value: 50 });
  range.setAttribute("aria-label", `Reference on the left, variant on the right: ${slider.dataset.name}`);
  const cut = (value) => {
    range.value = value;
    pair.style.setProperty("--cut", `${range.value}%`);
    range.setAttribute("aria-valuetext", `cut at ${range.value} per cent`);
  };
  const follow = (event) => {
    const box = pair.getBoundingClientRect();
    if (event.buttons === 1) cut((100 * (event.clientX - box.left)) / box.width);
  };
  range.addEventListener("input", () => cut(range.value));
  pair.addEventListener("pointerdown", (event) => { pair.setPointerCapture(event.pointerId); follow(event); });
  pair.addEventListener("pointermove", follow);
  const ends = document.createElement("div");
  ends.className = "ends";
  ends.append("Reference", range, "Variant");
  slider.append(pair, ends);
  slider.hidden = false;
  cut(50);
}
