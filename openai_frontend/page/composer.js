/** Where the next question is written: its text and its pictures. */

import { MEDIA_TYPES, pictureItem, readPicture, refusalOf } from "./pictures.js";

export class Composer {
  #adding = Promise.resolve();

  /**
   * @param {HTMLFormElement} form
   * @param {object} callbacks
   * @param {() => void} callbacks.onSend
   * @param {() => object[]} callbacks.others - pictures of the conversation so far
   * @param {() => object} callbacks.limits - of the server and the chosen model
   * @param {(sentences: string) => void} callbacks.onRefused - pictures cannot be added
   */
  constructor(form, { onSend, others, limits, onRefused }) {
    Object.assign(this, { form, onSend, others, limits, onRefused });
    this.field = form.querySelector("textarea");
    this.list = form.querySelector(".pictures");
    this.editing = form.querySelector(".editing");
    this.pictures = [];
    /** Index of the turn that is edited, and the draft that waits meanwhile. */
    this.edited = null;
    const file = form.querySelector("input[type=file]");
    file.accept = MEDIA_TYPES.join(",");
    file.addEventListener("change", async () => {
      await this.addFiles([...file.files]);
      file.value = ""; // the same file can be chosen again
    });
    form.querySelector(".choose").addEventListener("click", () => file.click());
    this.editing.querySelector("button").addEventListener("click", () => this.cancelEdit());
    this.field.addEventListener("keydown", (event) => {
      // Enter also ends the composing of a character, which is not meant to send.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.field.value.trim() || this.pictures.length) this.onSend();
    });
  }

  focus() {
    this.field.focus();
  }

  /** The question as it is written now. */
  get draft() {
    return { text: this.field.value.trim(), pictures: this.pictures };
  }

  set draft({ text, pictures }) {
    this.field.value = text;
    this.pictures = pictures;
    this.#showPictures();
  }

  /** The question and the turn that it replaces, if one is edited; what remains is another draft. */
  take() {
    const taken = { question: this.draft, index: this.edited?.index ?? null };
    this.#endEdit();
    return taken;
  }

  /** Put a question that was not answered before what has been written since. */
  putBack(question) {
    if (this.edited) this.edited.draft = joined(question, this.edited.draft);
    else this.draft = joined(question, this.draft);
  }

  /** Edit an earlier question; the draft comes back afterwards. */
  edit(index, question) {
    this.edited = { index, draft: this.edited?.draft ?? this.draft };
    this.draft = question;
    this.editing.hidden = false;
    this.focus();
  }

  cancelEdit() {
    this.#endEdit();
    this.focus();
  }

  /** Add picture files in the order they came; what cannot be added is said and left out. */
  addFiles(files) {
    const list = [...files]; // a drop's files are gone after its event
    this.#adding = this.#adding.then(() => this.#addAll(list));
    return this.#adding;
  }

  async #addAll(files) {
    const refusals = [];
    for (const file of files) {
      const refusal = refusalOf(file, [...this.others(), ...this.pictures], this.limits());
      if (refusal) refusals.push(refusal);
      else await this.#addFile(file).catch((error) => refusals.push(error.message));
    }
    if (refusals.length) this.onRefused(refusals.join(" "));
    this.focus();
  }

  async #addFile(file) {
    const picture = await readPicture(file);
    this.pictures = [...this.pictures, picture];
    this.#showPictures();
  }

  #endEdit() {
    this.draft = this.edited?.draft ?? { text: "", pictures: [] };
    this.edited = null;
    this.editing.hidden = true;
  }

  #showPictures() {
    this.list.replaceChildren(...this.pictures.map((picture, i) => this.#item(picture, i)));
  }

  #item(picture, index) {
    const item = pictureItem(picture);
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "×";
    button.setAttribute("aria-label", `Remove ${picture.name}`);
    button.addEventListener("click", () => {
      this.pictures = this.pictures.filter((other) => other !== picture);
      this.#showPictures();
      const buttons = this.list.querySelectorAll("button");
      (buttons[index] ?? buttons[index - 1] ?? this.field).focus();
    });
    item.append(button);
    return item;
  }
}

function joined(first, second) {
  return {
    text: [first.text, second.text].filter(Boolean).join("\n\n"),
    pictures: [...first.pictures, ...second.pictures],
  };
}
