// What a program with OpenAI's Node.js client does, one scenario a run; prints what came of it as JSON.
// node client.mjs SCENARIO, with JSON {baseURL, apiKey, model, image} on stdin, where image is a data: URL.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const { baseURL, apiKey, model, image } = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [
  {
    role: "user",
    content: [
      { type: "text", text: "What is in this image?" },
      { type: "image_url", image_url: { url: image } },
    ],
  },
];
const greedy = { model, temperature: 0, max_tokens: 64 };
const schema = {
  type: "object",
  properties: { colour: { enum: ["red", "green"] }, count: { type: "integer", minimum: 0, maximum: 9 } },
  required: ["colour", "count"],
  additionalProperties: false,
};

const scenarios = {
  models: async () => {
    const ids = [];
    for await (const { id } of client.models.list()) ids.push(id);
    return { ids, one: (await client.models.retrieve(model)).id };
  },

  chat: async () => {
    const { choices, usage } = await client.chat.completions.create({ ...greedy, messages });
    const stream = await client.chat.completions.create({
      ...greedy,
      messages,
      stream: true,
      stream_options: { include_usage: true },
    });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    return { whole: choices[0], usage, chunks };
  },

  // The library's own helper puts the chunks together.
  streamHelper: async () => {
    const stream = client.chat.completions.stream({ ...greedy, messages });
    const seen = [];
    stream.on("content", (delta) => seen.push(delta));
    const completion = await stream.finalChatCompletion();
    return { seen, choice: completion.choices[0] };
  },

  structuredOutput: async () => {
    const response_format = { type: "json_schema", json_schema: { name: "found", schema, strict: true } };
    const { choices } = await client.chat.completions.parse({ ...greedy, messages, response_format });
    return choices[0].message.parsed;
  },

  // A call, the answer to its result, and the same call streamed.
  tools: async () => {
    const tools = [{ type: "function", function: { name: "draw", parameters: schema } }];
    const options = { model, max_tokens: 200, tools, parallel_tool_calls: false };
    const asked = { ...options, messages, tool_choice: "required" };
    const whole = (await client.chat.completions.create(asked)).choices[0];
    const streamed = (await client.chat.completions.stream(asked).finalChatCompletion()).choices[0];
    const { message } = whole;
    const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "drawn" };
    const history = [...messages, message, result];
    const last = { ...options, messages: history, tool_choice: "none", max_tokens: 4 };
    const after = (await client.chat.completions.create(last)).choices[0];
    return { whole, streamed, after };
  },

  responses: async () => {
    const content = [
      { type: "input_text", text: "What is in this image?" },
      { type: "input_image", image_url: image, detail: "auto" },
    ];
    const options = { model, temperature: 0, max_output_tokens: 64 };
    const first = await client.responses.create({ ...options, input: [{ role: "user", content }] });
    const events = [];
    const stream = client.responses
      .stream({ ...options, input: "What can you do?", previous_response_id: first.id })
      .on("event", (event) => events.push(event.type));
    const second = await stream.finalResponse();
    const again = await client.responses.retrieve(second.id);
    const items = [];
    for await (const item of client.responses.inputItems.list(second.id)) items.push(item.role);
    await client.responses.delete(first.id);
    const gone = await failure(() => client.responses.retrieve(first.id));
    return {
      first: { status: first.status, text: first.output_text, usage: first.usage },
      second: { text: second.output_text, previous: second.previous_response_id === first.id, events },
      again: again.output[0].content[0].text,
      items,
      gone,
    };
  },

  badRequests: async () => [
    await failure(() => client.chat.completions.create({ ...greedy, messages, temperature: 9 })),
    await failure(() => client.chat.completions.create({ ...greedy, messages: picture("data:image/png;base64,AA=A") })),
    await failure(() => client.chat.completions.create({ ...greedy, messages: picture(image.slice(0, 122)) })),
    await failure(() => client.chat.completions.create({ ...greedy, messages: [], stream: true })),
    await failure(() => client.chat.completions.create({ ...greedy, messages, model: "nobody/nothing" })),
    await failure(() => client.models.retrieve("nobody/nothing")),
  ],

  // Of a server whose key may make one request a minute.
  keys: async () => {
    const ask = (asking) => asking.chat.completions.create({ ...greedy, messages, max_tokens: 1 });
    const stranger = client.withOptions({ apiKey: "sk-of-somebody-else" });
    return {
      refused: await failure(() => ask(stranger)),
      answered: (await ask(client)).choices.length,
      limited: await failure(() => ask(client)),
    };
  },
};

function picture(url) {
  return [{ role: "user", content: [{ type: "image_url", image_url: { url } }] }];
}

async function failure(request) {
  try {
    await request();
  } catch (error) {
    const { status, code, type, param } = error;
    return { class: error.constructor.name, status, code, type, param, hasId: Boolean(error.requestID) };
  }
  throw new Error("this request should have failed");
}

console.log(JSON.stringify(await scenarios[process.argv[2]]()));
