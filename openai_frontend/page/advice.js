/** From an error to what a person can do about it. */

const AS_PNG = "Save the picture as PNG or JPEG and add that file.";
const ENTER_KEY = "Enter the server’s API key in the settings.";
const BY_CODE = {
  context_length_exceeded:
    "Start a new chat, ask with fewer or smaller pictures, or lower “Longest answer” in the settings.",
  image_file_too_large: "Remove a picture or take a smaller file.",
  image_parse_error: AS_PNG,
  invalid_api_key: ENTER_KEY,
  invalid_image: AS_PNG,
  invalid_image_format: AS_PNG,
  model_not_found: "Choose another model at the top of the page.",
  request_too_large: "Remove a picture or take a smaller file.",
};

/** One sentence for an `ApiError`, or an empty string where the message says it all. */
export function adviceFor(error) {
  if (error.status === undefined) return "Reload the page; if it happens again, please report it.";
  if (error.code in BY_CODE) return BY_CODE[error.code];
  switch (error.status) {
    case 0:
      return "Check that it is still running and that you are online, then send again.";
    case 401:
    case 403:
      return ENTER_KEY;
    case 429:
    case 503:
      return `Send again in ${error.retryAfterS ?? "a few"} seconds or later.`;
    case 500:
      return `Send again; the reason is in the server’s log, at request ${error.requestId}.`;
    default:
      return "";
  }
}
