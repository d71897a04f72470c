// The header of every page.

import { h } from "./dom.js";
import { isDark, onTheme, toggle } from "./theme.js";

export function wireHeader() {
  const button = document.getElementById("theme");
  const name = () => {
    button.textContent = isDark() ? "☀" : "☾";
    button.setAttribute("aria-label", isDark() ? "Light colours" : "Dark colours");
    button.title = button.getAttribute("aria-label");
  };
  button.addEventListener("click", toggle);
  onTheme(name);
  name();
  addEventListener("load", () => offerLogout(button), { once: true });
}

// If keys are required, /login is a page that shows who is logged in; otherwise it redirects.
async function offerLogout(button) {
  const answer = await fetch("/login", { redirect: "manual" }).catch(() => null);
  if (answer?.ok) button.before(h("a", { class: "meta link", href: "/login" }, "Log out"));
}
