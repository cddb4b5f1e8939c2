// Asks a server with the openai package. Reads {base_url, messages} from stdin, prints one object.
import OpenAI from "openai";
import { text } from "node:stream/consumers";

const { base_url: baseURL, messages } = JSON.parse(await text(process.stdin));
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const create = (body) => client.chat.completions.create({ model, messages, ...body });

async function failure(work) {
  try {
    await work();
  } catch (error) {
    const { status, code, param, type, requestID } = error;
    return { name: error.constructor.name, status, code, param, type, requestID };
  }
  return null;
}

const plain = await create({ n: 2, seed: 1, logprobs: true });

let streamed = "";
let last = null;
let usage = null;
const stream = await create({ stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  last = chunk.choices[0] ?? last;
  usage = chunk.usage ?? usage;
}

const helper = client.chat.completions.stream({ model, messages });
const helped = await helper.finalChatCompletion();

const followUp = { role: "user", content: "Locate the polygon of the cat." };
const conversation = [...messages, plain.choices[0].message, followUp];
const second = await create({ messages: conversation });

console.log(
  JSON.stringify({
    model: (await client.models.retrieve(model)).id,
    plain,
    requestID: plain._request_id,
    streamed,
    last,
    usage,
    helped: helped.choices[0].message,
    second: second.choices[0].message.content,
    unknown: await failure(() => create({ guided_json: {} })),
    unsupported: await failure(() => create({ stop: ["]"] })),
    grammar: await failure(() =>
      create({ response_format: { type: "json_schema", json_schema: { name: "x", schema: {} } } }),
    ),
    missing: await failure(() => client.models.retrieve("nobody")),
  }),
);
