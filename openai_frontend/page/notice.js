/** The place for what went wrong, above the question field. */

export class Notice {
  constructor(node) {
    this.node = node;
    node.querySelector("button").addEventListener("click", () => this.clear());
  }

  /**
   * @param {string} message - what is wrong
   * @param {object} [details]
   * @param {string} [details.advice] - what to do
   * @param {?string} [details.code] - for who looks it up
   */
  show(message, { advice = "", code = null } = {}) {
    this.node.hidden = false;
    this.node.querySelector(".message").textContent = message;
    this.node.querySelector(".advice").textContent = advice;
    this.node.querySelector(".code").textContent = code ?? "";
  }

  clear() {
    this.node.hidden = true;
  }
}
