/** From a conversation to the body of a request. */

/**
 * @param {object} options
 * @param {string} options.model
 * @param {string} options.system - instructions, empty for none
 * @param {object} options.sampling - fields of the API that were set
 * @param {{question: object, answer: object}[]} options.turns - what was said before
 * @param {{text: string, pictures: object[]}} options.question
 */
export function chatRequest({ model, system, sampling, turns, question }) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    messages.push(userMessage(turn.question), { role: "assistant", content: turn.answer.text });
  }
  messages.push(userMessage(question));
  return { model, messages, stream: true, stream_options: { include_usage: true }, ...sampling };
}

function userMessage({ text, pictures }) {
  if (pictures.length === 0) return { role: "user", content: text };
  const content = pictures.map(({ dataUri }) => ({ type: "image_url", image_url: { url: dataUri } }));
  if (text) content.push({ type: "text", text });
  return { role: "user", content };
}
