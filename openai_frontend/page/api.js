/** The server's HTTP API, as far as the page uses it. */

// Relative, so that the page also works below a path of another web server.
export const BASE_URL = new URL("v1", document.baseURI).href;

/** The server refused a request, or could not be reached. */
export class ApiError extends Error {
  /**
   * @param {string} message - one sentence
   * @param {{status?: number, code?: ?string, requestId?: ?string, retryAfterS?: ?string}} details -
   *     status 0: the server did not answer, or its answer broke off
   */
  constructor(message, { status = 0, code = null, requestId = null, retryAfterS = null } = {}) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, code, requestId, retryAfterS });
  }
}

/** What the server takes: `max_images`, `max_image_bytes`, `max_total_image_bytes`. */
export async function readLimits() {
  return (await request(new URL("page/limits.json", document.baseURI), {})).json();
}

/** The models that can be asked, each with `id`, `max_model_len` and `max_images`. */
export async function listModels(key) {
  const response = await request(`${BASE_URL}/models`, { headers: authorization(key) });
  return (await response.json()).data;
}

/** The chunks of a streamed answer; aborting `signal` makes the server stop computing it. */
export async function* streamChat(body, key, signal) {
  const response = await request(`${BASE_URL}/chat/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorization(key) },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of eventData(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) {
      // The status line was sent before the error came.
      throw new ApiError(chunk.error.message, { ...about(response), code: chunk.error.code, status: 500 });
    }
    yield chunk;
  }
  throw new ApiError("The connection ended before the answer was complete.");
}

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function request(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  throw new ApiError(message, { code: body?.error?.code ?? null, ...about(response) });
}

function about(response) {
  return {
    status: response.status,
    requestId: response.headers.get("x-request-id"),
    retryAfterS: response.headers.get("retry-after"),
  };
}

/** The data of server-sent events; the server writes each on one line. */
async function* eventData(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The connection ended before the answer was complete.");
    });
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice("data:".length).trim();
    }
  }
}
