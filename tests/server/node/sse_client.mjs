// Reads a stream with nothing but what Node itself has. Reads {base_url, messages} from stdin,
// prints one object.
import { text } from "node:stream/consumers";

const { base_url: baseURL, messages } = JSON.parse(await text(process.stdin));
const response = await fetch(`${baseURL}/chat/completions`, {
  method: "POST",
  headers: { "content-type": "application/json", authorization: "Bearer unused" },
  body: JSON.stringify({ messages, stream: true }),
});

const events = [];
let rest = "";
for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
  const blocks = (rest + piece).split("\n\n");
  rest = blocks.pop();
  for (const block of blocks) {
    const data = block.split("\n").filter((line) => line.startsWith("data: "));
    if (data.length) events.push(data.map((line) => line.slice(6)).join("\n"));
  }
}

const done = events.pop();
const deltas = events.map((event) => JSON.parse(event).choices[0].delta);
console.log(
  JSON.stringify({
    type: response.headers.get("content-type"),
    done,
    rest,
    content: deltas.map((delta) => delta.content ?? "").join(""),
    segmentation: deltas.at(-1).segmentation,
  }),
);
