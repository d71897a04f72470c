// What stands above every page.

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
}
