/** Put `text` on the clipboard. */
export async function copy(text) {
  // Browsers have no clipboard for pages over plain http, other than of this machine.
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  focused?.focus();
}
