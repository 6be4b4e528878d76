/** Pictures that go with a question: checked like the server checks them, sent as they are. */

export const MEDIA_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];

/**
 * Why a file cannot be added, or null.
 * @param {File} file
 * @param {{size: number}[]} others - pictures that will be sent along
 * @param {object} limits - of the server and the model
 */
export function refusalOf(file, others, limits) {
  if (!MEDIA_TYPES.includes(file.type)) return `${file.name} is not a PNG, JPEG, WebP or GIF picture.`;
  if (file.size === 0) return `${file.name} is empty.`;
  if (limits.maxImages === 0) return "This model reads text only; choose another one to ask about pictures.";
  if (others.length >= limits.maxImages) {
    return `This model takes at most ${plural(limits.maxImages, "picture")} in a conversation; remove one or start a new chat.`;
  }
  if (file.size > limits.maxImageBytes) {
    return `${file.name} has ${mebibytes(file.size)}; the server takes pictures of up to ${mebibytes(limits.maxImageBytes)}.`;
  }
  const total = others.reduce((sum, picture) => sum + picture.size, file.size);
  if (total > limits.maxTotalImageBytes) {
    return `With ${file.name} the pictures have ${mebibytes(total)} together; the server takes up to ${mebibytes(limits.maxTotalImageBytes)}.`;
  }
  return null;
}

/** `{name, size, dataUri}` of a file. */
export function readPicture(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ name: file.name, size: file.size, dataUri: reader.result });
    reader.onerror = () => reject(new Error(`${file.name} cannot be read: ${reader.error.message}`));
    reader.readAsDataURL(file);
  });
}

/** A list item that shows a picture. */
export function pictureItem(picture) {
  const image = document.createElement("img");
  image.src = picture.dataUri;
  image.alt = picture.name;
  const item = document.createElement("li");
  item.append(image);
  return item;
}

/** `count` and `noun`, with an s where it belongs. */
export function plural(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

function mebibytes(bytes) {
  const value = bytes / 2 ** 20;
  return `${value.toFixed(Number.isInteger(value) ? 0 : 1)} MiB`;
}
