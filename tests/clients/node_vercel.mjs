// Mem0's provider for Vercel's AI SDK, unchanged: its own setting `host` names the address.
// usage: node node_vercel.mjs FOLDER_WITH_NODE_MODULES URL KEY
import { createRequire } from "node:module";
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { eventually, require_, works } from "./node_script.mjs";

const [folder, host, mem0ApiKey] = process.argv.slice(2);
const { addMemories, getMemories, retrieveMemories, searchMemories } = createRequire(join(folder, "x.js"))("@mem0/vercel-ai-provider");
const config = { user_id: `user-${randomUUID().slice(0, 8)}`, host, mem0ApiKey };
const prompt = [{ role: "user", content: [{ type: "text", text: "What do I drink?" }] }];

await works("addMemories", async () => {
  const messages = [{ role: "user", content: [{ type: "text", text: "I drink tea" }] }];
  require_((await addMemories(messages, { ...config, infer: false })).event_id);
});
await works("getMemories", () =>
  eventually(async () => (await getMemories(prompt, config)).some((one) => one.memory === "I drink tea")));
await works("retrieveMemories", async () => require_((await retrieveMemories(prompt, config)).includes("Memory: I drink tea")));
await works("searchMemories", async () => require_((await searchMemories("tea", config)).results[0].memory === "I drink tea"));
process.exit(0);
