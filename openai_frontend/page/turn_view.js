/** Shows one question and its answer. */

import { copy } from "./clipboard.js";
import { renderMarkdown } from "./markdown.js";
import { pictureItem } from "./pictures.js";

export class TurnView {
  /**
   * @param {HTMLTemplateElement} template
   * @param {{question: object, answer: Answer}} turn
   * @param {object} callbacks
   * @param {() => void} callbacks.onEdit - the question shall be changed
   * @param {() => void} callbacks.onAgain - the question shall be asked again
   * @param {() => string} callbacks.curl - the request as a command
   * @param {() => string} callbacks.python - the request as a program
   * @param {(sentence: string) => void} callbacks.onCopied
   */
  constructor(template, turn, { onEdit, onAgain, curl, python, onCopied }) {
    this.node = template.content.firstElementChild.cloneNode(true);
    this.answer = turn.answer;
    this.onCopied = onCopied;
    this.isDrawing = false;
    const find = (selector) => this.node.querySelector(selector);
    find(".question .text").textContent = turn.question.text;
    find(".question .pictures").append(...turn.question.pictures.map(pictureItem));
    find(".edit").addEventListener("click", onEdit);
    find(".again").addEventListener("click", onAgain);
    this.#copies(find(".copy-answer"), () => this.answer.text);
    this.#copies(find(".copy-curl"), curl);
    this.#copies(find(".copy-python"), python);
    this.#draw();
  }

  /** Show what the answer has become, once per frame. */
  update() {
    if (this.isDrawing) return;
    this.isDrawing = true;
    requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.isDrawing = false;
    const { text, reasoning, state } = this.answer;
    const article = this.node.querySelector(".answer");
    article.dataset.state = state;
    article.setAttribute("aria-busy", state === "running");
    article.querySelector(".reasoning").hidden = reasoning === "";
    article.querySelector(".reasoning p").textContent = reasoning;
    article.querySelector(".text").replaceChildren(renderMarkdown(text));
    const facts = this.answer.facts().map((fact) => {
      const item = document.createElement("li");
      item.textContent = fact;
      return item;
    });
    article.querySelector(".facts").replaceChildren(...facts);
  }

  #copies(button, content) {
    const label = button.textContent;
    button.addEventListener("click", async () => {
      await copy(content());
      this.onCopied(`${label}: done`);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = label), 1500);
    });
  }
}
