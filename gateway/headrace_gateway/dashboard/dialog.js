// Dialogs that ask before an action that cannot be undone. Escape means no.

import { h } from "./dom.js";

// Returns whether the answer is yes.
export async function confirmed(question, yes) {
  return await show(question, [], yes) === "yes";
}

// Returns the new value as text; null if it was cancelled.
export async function asked(question, value) {
  const field = h("input", { type: "text", value, "aria-label": question });
  return await show(question, [field], "Change it") === "yes" ? field.value : null;
}

// Reports that an action failed, and why.
export async function tell(message) {
  await show(message, [], null);
}

async function show(text, more, yes) {
  const buttons = [h("button", { value: "no", formnovalidate: true }, yes ? "No, go back" : "Close"), yes ? h("button", { class: "primary", value: "yes" }, yes) : null];
  const dialog = h("dialog", { "aria-label": text }, h("form", { method: "dialog" }, h("p", {}, text), more, h("div", { class: "choices" }, buttons)));
  document.body.append(dialog);
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  dialog.remove();
  return dialog.returnValue;
}
