// Asks a server with Vercel's AI SDK. Reads {base_url, image64, question} from stdin, prints one
// object.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import { text } from "node:stream/consumers";

const { base_url: baseURL, image64, question } = JSON.parse(await text(process.stdin));
const provider = createOpenAICompatible({
  name: "simpleseg",
  baseURL,
  apiKey: "unused",
  includeUsage: true,
});
const image = { type: "image", image: Buffer.from(image64, "base64"), mediaType: "image/png" };
const options = {
  model: provider.chatModel("scripted-model"),
  system: "Answer briefly.",
  messages: [{ role: "user", content: [image, { type: "text", text: question }] }],
  maxRetries: 0,
};

const plain = await generateText({ ...options, temperature: 0, maxOutputTokens: 500, seed: 3 });

let streamed = "";
const stream = streamText(options);
for await (const piece of stream.textStream) streamed += piece;

let refusal = null;
try {
  await generateText({ ...options, stopSequences: ["]"] });
} catch (error) {
  refusal = { status: error.statusCode, message: error.message, body: error.responseBody };
}

console.log(
  JSON.stringify({
    text: plain.text,
    finishReason: plain.finishReason,
    usage: plain.usage,
    segmentation: plain.response.body.choices[0].message.segmentation,
    streamed,
    streamReason: await stream.finishReason,
    streamUsage: await stream.usage,
    refusal,
  }),
);
