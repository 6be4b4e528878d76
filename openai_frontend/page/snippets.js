/**
 * The request that was sent, as a command or a program. A picture is named by its file, and the API
 * key is taken from the environment, so what is copied is short and holds no secret.
 */

const INDENT = "    ";
// What the OpenAI package has no argument for goes into `extra_body`.
const EXTRA_FIELDS = ["top_k", "min_p", "repetition_penalty"];

/**
 * @param {object} body - of the request
 * @param {string} baseUrl - of the API, with `/v1`
 * @param {boolean} hasKey - whether a key was sent
 * @param {Map<string, string>} names - file names by data URI
 */
export function asCurl(body, baseUrl, hasKey, names) {
  const text = print(body, {
    // The shell replaces $, ` and \ in a here-document.
    string: (value) => JSON.stringify(value).replace(/[\\$`]/g, "\\$&"),
    literal: String,
    picture: ({ type, name }) => `"data:${type};base64,$(base64 < '${name}' | tr -d '\\n')"`,
  }, names);
  const key = hasKey ? `  -H "Authorization: Bearer $OPENAI_API_KEY" \\\n` : "";
  return (
    `curl --no-buffer ${shellQuoted(`${baseUrl}/chat/completions`)} \\\n` +
    `  -H "Content-Type: application/json" \\\n${key}  --data-binary @- <<EOF\n${text}\nEOF\n`
  );
}

/** The same for Python and the OpenAI package; takes what `asCurl` takes. */
export function asPython(body, baseUrl, hasKey, names) {
  const style = {
    string: JSON.stringify,
    literal: (value) => ({ true: "True", false: "False", null: "None" })[value] ?? String(value),
    picture: ({ type, name }) => `picture(${JSON.stringify(name)}, ${JSON.stringify(type)})`,
  };
  const own = Object.entries(body).filter(([field]) => !EXTRA_FIELDS.includes(field));
  const extra = Object.entries(body).filter(([field]) => EXTRA_FIELDS.includes(field));
  if (extra.length) own.push(["extra_body", Object.fromEntries(extra)]);
  const fields = own.map(([field, value]) => `${INDENT}${field}=${print(value, style, names, INDENT)},\n`);
  const hasPictures = names.size > 0;
  const imports = [hasPictures && "import base64", hasKey && "import os"].filter(Boolean);
  const key = hasKey ? `os.environ["OPENAI_API_KEY"]` : `"unused"`;
  return [
    ...(imports.length ? [...imports, ""] : []),
    "from openai import OpenAI",
    "",
    ...(hasPictures
      ? [
          "",
          "def picture(path, media_type):",
          `${INDENT}with open(path, "rb") as file:`,
          `${INDENT}${INDENT}return f"data:{media_type};base64,{base64.b64encode(file.read()).decode()}"`,
          "",
          "",
        ]
      : []),
    `client = OpenAI(base_url=${JSON.stringify(baseUrl)}, api_key=${key})`,
    `stream = client.chat.completions.create(\n${fields.join("")})`,
    "for chunk in stream:",
    `${INDENT}if chunk.choices and chunk.choices[0].delta.content:`,
    `${INDENT}${INDENT}print(chunk.choices[0].delta.content, end="", flush=True)`,
    "print()",
    "",
  ].join("\n");
}

/** File names for pictures by data URI: safe to write into a program, and no name twice. */
export function fileNames(pictures) {
  const names = new Map();
  for (const { name, dataUri } of pictures) {
    if (names.has(dataUri)) continue;
    const safe = name.replace(/[^\p{L}\p{N}._ -]/gu, "_");
    const [, stem, suffix] = safe.match(/^(.*?)(\.[^.]*)?$/);
    const taken = [...names.values()];
    let unique = safe;
    for (let i = 2; taken.includes(unique); i++) unique = `${stem}-${i}${suffix ?? ""}`;
    names.set(dataUri, unique);
  }
  return names;
}

function print(value, style, names, indent = "") {
  if (typeof value === "string") {
    const name = names.get(value);
    if (name === undefined) return style.string(value);
    return style.picture({ name, type: value.slice("data:".length, value.indexOf(";")) });
  }
  if (value === null || typeof value !== "object") return style.literal(value);
  const inner = indent + INDENT;
  const isList = Array.isArray(value);
  const items = isList
    ? value.map((item) => print(item, style, names, inner))
    : Object.entries(value).map(
        ([field, item]) => `${style.string(field)}: ${print(item, style, names, inner)}`,
      );
  const [open, close] = isList ? "[]" : "{}";
  return `${open}\n${items.map((item) => inner + item).join(",\n")}\n${indent}${close}`;
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
