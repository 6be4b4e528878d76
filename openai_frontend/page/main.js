/** Puts the page together: the chosen model, the conversation, and the one answer that may run. */

import { adviceFor } from "./advice.js";
import { Answer } from "./answer.js";
import { BASE_URL, listModels, readLimits, streamChat } from "./api.js";
import { chatRequest } from "./chat_request.js";
import { Composer } from "./composer.js";
import { examplesFor } from "./examples.js";
import { Notice } from "./notice.js";
import { plural } from "./pictures.js";
import { Settings } from "./settings.js";
import { asCurl, asPython, fileNames } from "./snippets.js";
import { TurnView } from "./turn_view.js";

const byId = (id) => document.getElementById(id);

/** `{question, answer, view}` of each turn. */
let turns = [];
let models = [];
let serverLimits = {};
/** Stops the answer that runs, if any. */
let running = null;

const notice = new Notice(byId("notice"));
const settings = new Settings(byId("settings"), byId("settings-button"), loadModels);
const composer = new Composer(byId("composer"), {
  onSend: send,
  others: () => picturesOf(turns.slice(0, composer.edited?.index)),
  limits,
  onRefused: (sentence) => notice.show(sentence),
});
const stopButton = document.querySelector(".stop");
const sendButton = document.querySelector(".send");

async function loadModels() {
  try {
    [serverLimits, models] = await Promise.all([readLimits(), listModels(settings.key)]);
    notice.clear();
    if (models.length === 0) {
      notice.show("The server has no model yet.", { advice: "Send when it has loaded one." });
    }
  } catch (error) {
    models = [];
    report(error);
  }
  const chosen = byId("model").value;
  byId("model").replaceChildren(...models.map(({ id }) => new Option(id, id, false, id === chosen)));
  byId("model").disabled = models.length === 0;
  showModel();
}

function showModel() {
  byId("model-limits").textContent = limitsInWords();
  showExamples();
}

function chosenModel() {
  return models.find(({ id }) => id === byId("model").value);
}

function limits() {
  const { max_images, max_image_bytes, max_total_image_bytes } = serverLimits;
  return {
    maxImages: Math.min(max_images ?? Infinity, chosenModel()?.max_images ?? Infinity),
    maxImageBytes: max_image_bytes ?? Infinity,
    maxTotalImageBytes: max_total_image_bytes ?? Infinity,
  };
}

function limitsInWords() {
  const model = chosenModel();
  if (!model) return "No model to ask";
  const { maxImages } = limits();
  const pictures = maxImages === 0 ? "reads text only" : `up to ${plural(maxImages, "picture")}`;
  return model.max_model_len ? `${pictures} · ${plural(model.max_model_len, "token")}` : pictures;
}

function showExamples() {
  const canSeeImages = limits().maxImages > 0;
  byId("welcome-title").textContent = canSeeImages ? "Ask about a picture" : "Ask something";
  document.querySelector("#welcome p").hidden = !canSeeImages;
  const items = chosenModel() ? examplesFor(limits().maxImages).map(exampleItem) : [];
  byId("examples").replaceChildren(...items);
}

function exampleItem({ question, pictures }) {
  const item = byId("example").content.firstElementChild.cloneNode(true);
  item.querySelector(".pictures").append(...pictures.map(({ canvas }) => canvas));
  item.querySelector(".text").textContent = question;
  item.querySelector("button").addEventListener("click", () => {
    composer.focus();
    if (!running) ask({ text: question, pictures }, turns.length, (asked) => composer.putBack(asked));
  });
  return item;
}

async function send() {
  if (!chosenModel()) await loadModels();
  if (running || !chosenModel() || !settings.check()) return;
  const { question, index } = composer.take();
  ask(question, index ?? turns.length, () =>
    index === null ? composer.putBack(question) : composer.edit(index, question),
  );
}

/**
 * Ask `question` in place of the turns from `index` on, which come back if there is no answer.
 * @param {{text: string, pictures: object[]}} question
 * @param {number} index
 * @param {(question: object) => void} onUnanswered
 */
async function ask(question, index, onUnanswered) {
  notice.clear();
  const replaced = turns.splice(index);
  const answer = new Answer({
    body: chatRequest({
      model: byId("model").value,
      system: settings.system,
      sampling: settings.sampling,
      turns,
      question,
    }),
    hasKey: settings.key !== "",
  });
  const turn = { question, answer };
  turn.view = viewOf(turn);
  turns.push(turn);
  showTurns();
  running = new AbortController();
  showRunning();
  say("The answer is coming.");
  let failure = null;
  try {
    const chunks = streamChat(answer.request.body, settings.key, running.signal);
    await answer.receive(chunks, () => {
      const isAtEnd = distanceToEnd() < 80;
      turn.view.update();
      if (isAtEnd) requestAnimationFrame(scrollToEnd);
    });
  } catch (error) {
    if (answer.state === "broken") failure = error;
  }
  running = null;
  showRunning();
  turn.view.update();
  if (turns.includes(turn) && !answer.isAnswered) {
    turns.splice(index, 1, ...replaced);
    showTurns();
    onUnanswered(question);
  }
  if (failure) report(failure);
  else say(answer.state === "complete" ? `Answer: ${answer.text}` : "Stopped.");
}

function viewOf(turn) {
  const names = () => fileNames(picturesOf(turns.slice(0, turns.indexOf(turn) + 1)));
  const snippet = (write) => () => {
    const { body, hasKey } = turn.answer.request;
    return write(body, BASE_URL, hasKey, names());
  };
  return new TurnView(byId("turn"), turn, {
    onEdit: () => composer.edit(turns.indexOf(turn), turn.question),
    onAgain: () => {
      composer.focus();
      if (!running && settings.check()) ask(turn.question, turns.indexOf(turn), () => {});
    },
    curl: snippet(asCurl),
    python: snippet(asPython),
    onCopied: say,
  });
}

function picturesOf(someTurns) {
  return someTurns.flatMap(({ question }) => question.pictures);
}

function showTurns() {
  byId("turns").replaceChildren(...turns.map(({ view }) => view.node));
  byId("welcome").hidden = turns.length > 0;
  scrollToEnd();
}

function showRunning() {
  document.body.classList.toggle("running", running !== null);
  const hadFocus = [stopButton, sendButton].includes(document.activeElement);
  stopButton.hidden = running === null;
  sendButton.hidden = running !== null;
  if (hadFocus) composer.focus();
}

function stop() {
  running?.abort();
}

function newChat() {
  stop();
  turns = [];
  if (composer.edited) composer.cancelEdit();
  notice.clear();
  showTurns();
  composer.focus();
}

function report(error) {
  notice.show(error.message, { advice: adviceFor(error), code: error.code });
  if (error.status === 401) settings.open(settings.fields.key);
}

/** For screen readers, which are not read every token as it comes. */
function say(sentence) {
  byId("status").textContent = sentence;
}

function distanceToEnd() {
  const { scrollHeight, scrollTop, clientHeight } = document.scrollingElement;
  return scrollHeight - scrollTop - clientHeight;
}

function scrollToEnd() {
  window.scrollTo(0, document.scrollingElement.scrollHeight);
}

function hasFiles(event) {
  return event.dataTransfer?.types.includes("Files");
}

byId("model").addEventListener("change", showModel);
byId("new-chat").addEventListener("click", newChat);
stopButton.addEventListener("click", stop);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (running) stop();
  else if (composer.edited) composer.cancelEdit();
});
document.addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  composer.addFiles([...event.clipboardData.files]);
});
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  document.body.classList.remove("dragging");
  composer.addFiles([...event.dataTransfer.files]);
});
loadModels();
