/** The settings panel: instructions, sampling and the API key. */

const KEY = "triton-vlm-api-key";

export class Settings {
  /**
   * @param {HTMLFormElement} form - whose number fields have the API's names
   * @param {HTMLButtonElement} button - shows and hides it
   * @param {() => void} onKey - called when another key was entered
   */
  constructor(form, button, onKey) {
    this.form = form;
    this.button = button;
    this.fields = form.elements;
    this.fields.key.value = sessionStorage.getItem(KEY) ?? "";
    this.fields.key.addEventListener("change", () => {
      sessionStorage.setItem(KEY, this.key);
      onKey();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    button.addEventListener("click", () => (this.isOpen ? this.close() : this.open()));
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.close();
    });
  }

  get isOpen() {
    return !this.form.hidden;
  }

  /** Kept for this tab only, until it is closed. */
  get key() {
    return this.fields.key.value.trim();
  }

  get system() {
    return this.fields.system.value.trim();
  }

  /** The fields that were set; the server has the defaults of the others. */
  get sampling() {
    const set = [...this.form.querySelectorAll("input[type=number]")].filter(({ value }) => value);
    return Object.fromEntries(set.map(({ name, valueAsNumber }) => [name, valueAsNumber]));
  }

  /** Whether all values are allowed; if not, shows the one that is not. */
  check() {
    if (this.form.checkValidity()) return true;
    this.#show(true);
    return this.form.reportValidity();
  }

  open(field = this.fields.system) {
    this.#show(true);
    field.focus();
  }

  close() {
    this.#show(false);
    this.button.focus();
  }

  #show(isOpen) {
    this.form.hidden = !isOpen;
    this.button.setAttribute("aria-expanded", isOpen);
  }
}
