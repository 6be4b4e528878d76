/**
 * A small part of Markdown as DOM nodes: paragraphs, headings, lists, code, bold and italic text.
 *
 * Nodes are made one by one and text is only ever text, so a model cannot write HTML. Links stay
 * text: where a model leads to is for the reader to decide.
 */

const FENCE = /^\s*(```|~~~)/;
const HEADING = /^#{1,6}\s+(.*)$/;
const ITEM = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const INLINE = /(`+)(.+?)\1(?!`)|\*\*(.+?)\*\*|\*([^\s*](?:[^*]*[^\s*])?)\*/;

/** The nodes of `source`; an unfinished block, as while an answer comes, ends with the text. */
export function renderMarkdown(source) {
  const nodes = document.createDocumentFragment();
  const lines = source.split("\n");
  for (let i = 0; i < lines.length; ) {
    const [block, next] = readBlock(lines, i);
    if (block) nodes.append(block);
    i = next;
  }
  return nodes;
}

/** The block that starts at line `i`, null for a blank line, and the line after it. */
function readBlock(lines, i) {
  const fence = lines[i].match(FENCE);
  if (fence) return readCode(lines, i, fence[1]);
  if (lines[i].trim() === "") return [null, i + 1];
  const heading = lines[i].match(HEADING);
  if (heading) return [element("h3", inline(heading[1])), i + 1];
  if (ITEM.test(lines[i])) return readList(lines, i);
  const end = endOf(lines, i + 1, (line) => line.trim() !== "" && !isBlockStart(line));
  const nodes = lines.slice(i, end).flatMap((line, n) => [...(n ? [element("br")] : []), ...inline(line)]);
  return [element("p", nodes), end];
}

function readCode(lines, i, fence) {
  const end = endOf(lines, i + 1, (line) => !line.trim().startsWith(fence));
  return [element("pre", [element("code", [lines.slice(i + 1, end).join("\n")])]), end + 1];
}

function readList(lines, i) {
  const isNumbered = (line) => line.match(ITEM)?.[1] !== undefined;
  const first = isNumbered(lines[i]);
  const end = endOf(lines, i, (line) => ITEM.test(line) && isNumbered(line) === first);
  const items = lines.slice(i, end).map((line) => element("li", inline(line.match(ITEM)[2])));
  const list = element(first ? "ol" : "ul", items);
  if (first) list.start = Number(lines[i].match(ITEM)[1]);
  return [list, end];
}

function isBlockStart(line) {
  return FENCE.test(line) || HEADING.test(line) || ITEM.test(line);
}

function endOf(lines, i, belongs) {
  while (i < lines.length && belongs(lines[i])) i++;
  return i;
}

function inline(text) {
  const nodes = [];
  for (let match; (match = text.match(INLINE)); ) {
    nodes.push(text.slice(0, match.index), styled(match));
    text = text.slice(match.index + match[0].length);
  }
  return [...nodes, text];
}

function styled([, , code, bold, italic]) {
  if (code !== undefined) return element("code", [code]);
  return bold === undefined ? element("em", inline(italic)) : element("strong", inline(bold));
}

function element(name, children = []) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}
