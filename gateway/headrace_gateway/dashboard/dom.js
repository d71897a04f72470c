// Makes elements from data. Text is always set as text, so that no text of a job can become markup.

export { color } from "./theme.js";
export { clock, count, duration, ended } from "./format.js";

export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// A card of the page: its title, and one line about what a healthy chart looks like.
export function card(place, title, goodIs, { wide = false, id } = {}) {
  const box = h("section", { class: `card${wide ? " wide" : ""}`, id }, h("h3", {}, title), h("p", { class: "good-is" }, goodIs));
  place.append(box);
  return box;
}

export function connection(state, text) {
  const element = document.getElementById("connection");
  element.className = `connection ${state}`;
  setText(element, text);
}
