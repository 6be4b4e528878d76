/** Questions to begin with, about pictures that are drawn here. */

const SIZE = 448; // pixels
const RED = "#dc141e";
const YELLOW = "#fadc1e";
const GREEN = "#28a03c";
const BLUE = "#1e50dc";
const PURPLE = "#8228b4";

const ABOUT_PICTURES = [
  { question: "What is in this image?", scenes: [{ name: "shapes.png", draw: drawShapes }] },
  { question: "Which number is in the picture?", scenes: [{ name: "number.png", draw: drawNumber }] },
  {
    question: "Which image has more shapes?",
    scenes: [{ name: "first.png", draw: drawThree }, { name: "second.png", draw: drawOne }],
  },
];
const ABOUT_TEXT = [
  { question: "What can you do?", scenes: [] },
  { question: "What can you tell me about the sea?", scenes: [] },
  { question: "Write a short poem about a lighthouse.", scenes: [] },
];

/** Examples for a model that takes `maxImages` pictures: `{question, pictures}`. */
export function examplesFor(maxImages) {
  const examples = maxImages === 0 ? ABOUT_TEXT : ABOUT_PICTURES;
  return examples
    .filter(({ scenes }) => scenes.length <= maxImages)
    .map(({ question, scenes }) => ({ question, pictures: scenes.map(drawn) }));
}

/** A picture, and the canvas that shows it. */
function drawn({ name, draw }) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIZE;
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, SIZE, SIZE);
  draw(context);
  const dataUri = canvas.toDataURL("image/png");
  const size = Math.floor(((dataUri.length - dataUri.indexOf(",")) * 3) / 4);
  return { canvas, name, dataUri, size };
}

function drawShapes(context) {
  polygon(context, BLUE, 0.19, 0.19, 0.16, [[0, -1], [0.95, 0.8], [-0.95, 0.8]]);
  circle(context, RED, 0.5, 0.5, 0.16);
  polygon(context, GREEN, 0.81, 0.81, 0.16, [[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]]);
}

function drawNumber(context) {
  context.fillStyle = BLUE;
  context.font = `bold ${SIZE * 0.42}px "DejaVu Sans", Verdana, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText("427", SIZE / 2, SIZE / 2, SIZE * 0.92);
}

function drawThree(context) {
  circle(context, PURPLE, 0.19, 0.5, 0.16);
  polygon(context, RED, 0.5, 0.81, 0.16, [[0, -1], [0.75, 0], [0, 1], [-0.75, 0]]);
  polygon(context, GREEN, 0.81, 0.19, 0.16, [[0, -1], [0.95, 0.8], [-0.95, 0.8]]);
}

function drawOne(context) {
  context.fillStyle = "black";
  context.fillRect(0, 0, SIZE, SIZE);
  const corners = Array.from({ length: 10 }, (_, i) => {
    const radius = i % 2 ? 0.42 : 1.05;
    return [radius * Math.sin((Math.PI * i) / 5), -radius * Math.cos((Math.PI * i) / 5)];
  });
  polygon(context, YELLOW, 0.5, 0.5, 0.3, corners);
}

/** Centre and radius are fractions of the picture; corners those of a shape of radius 1. */
function polygon(context, colour, x, y, radius, corners) {
  context.fillStyle = colour;
  context.beginPath();
  for (const [u, v] of corners) context.lineTo((x + radius * u) * SIZE, (y + radius * v) * SIZE);
  context.fill();
}

function circle(context, colour, x, y, radius) {
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x * SIZE, y * SIZE, radius * SIZE, 0, 2 * Math.PI);
  context.fill();
}
