// Every method of Mem0's npm client against a running service, one line of JSON each.
// usage: node node_client.mjs FOLDER_WITH_NODE_MODULES URL KEY
import { createRequire } from "node:module";
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { raises, refused, require_, works } from "./node_script.mjs";

process.env.MEM0_TELEMETRY = "false";
const [folder, host, apiKey] = process.argv.slice(2);
const { MemoryClient } = createRequire(join(folder, "x.js"))("mem0ai");
const client = new MemoryClient({ apiKey, host });
const userId = `user-${randomUUID().slice(0, 8)}`;
const unknown = "00000000-0000-4000-8000-000000000000";
const texts = (answer) => answer.results.map((row) => row.memory);

const filters = { user_id: userId };
const wait = { infer: false, async_mode: false };

await works("ping", () => client.ping());
await works("add", async () => {
  const told = await client.add([{ role: "user", content: "I drink tea" }], { userId, infer: false, metadata: { a_b: 1 } });
  require_(told.status === "PENDING" && told.eventId, told);
});
const added = await works("add, async_mode=false", async () => {
  const told = await client.add([{ role: "user", content: "I keep a cat" }], { userId, ...wait });
  require_(texts(told)[0] === "I keep a cat", told);
  return told.results[0].id;
}) ?? unknown;
await works("search", async () => {
  const found = await client.search("what do I drink?", { filters, topK: 3 });
  require_(texts(found)[0] === "I drink tea" && found.results[0].metadata.a_b === 1, found);
});
await works("search, nested filters", async () => {
  const found = await client.search("tea", { filters: { AND: [{ user_id: userId }, { a_b: 1 }] } });
  require_(texts(found).length === 1, found);
});
await works("getAll", async () => {
  const found = await client.getAll({ filters });
  require_(texts(found).length === 2 && found.count === 2, found);
});
await works("getAll, paged", async () => {
  const found = await client.getAll({ filters, page: 2, pageSize: 1 });
  require_(texts(found).length === 1 && found.previous, found);
});
await works("get", async () => require_((await client.get(added)).memory === "I keep a cat"));
await works("update", async () => {
  await client.update(added, { text: "I keep two cats" });
  require_((await client.get(added)).memory === "I keep two cats");
});
await works("history", async () => {
  const events = (await client.history(added)).map((one) => one.event);
  require_(events.join() === "ADD,UPDATE", events);
});
await works("users", async () => {
  const found = await client.users({ page: 1, pageSize: 500 });
  require_(found.results.some((row) => row.name === userId && row.type === "user"), found);
});
await works("feedback", () => client.feedback({ memoryId: added, feedback: "POSITIVE" }));
const exported = await works("createMemoryExport", async () => {
  const told = await client.createMemoryExport({ schema: {}, filters });
  require_(told.id, told);
  return told.id;
});
await works("getMemoryExport", async () => {
  const told = await client.getMemoryExport({ memoryExportId: exported, filters });
  require_(told.memories.length === 2, told);
});
await works("getProfile", async () => require_("status" in (await client.getProfile({ entityId: userId }))));
await works("batchUpdate", async () => {
  await client.batchUpdate([{ memoryId: added, text: "I keep three cats" }]);
  require_((await client.get(added)).memory === "I keep three cats");
});
await works("batchDelete", async () => {
  await client.batchDelete([added]);
  require_(texts(await client.getAll({ filters })).length === 1);
});
await works("delete", async () => {
  const told = await client.add([{ role: "user", content: "I read books" }], { userId, ...wait });
  await client.delete(told.results[0].id);
  await raises("get of an unknown id", "MemoryNotFoundError", () => client.get(told.results[0].id));
});
await works("deleteAll", async () => {
  await client.deleteAll({ userId });
  require_(texts(await client.getAll({ filters })).length === 0);
});
await works("deleteUser", async () => {
  await client.add([{ role: "user", content: "I read books" }], { userId, ...wait });
  await client.deleteUser({ entity_id: userId, entity_type: "user" });
  require_(texts(await client.getAll({ filters })).length === 0);
});
await works("deleteUsers", async () => {
  await client.add([{ role: "user", content: "I read books" }], { userId, ...wait });
  await client.deleteUsers({ userId });
  require_(texts(await client.getAll({ filters })).length === 0);
});
await raises("search without ids", "ValidationError", () => client.search("tea", { filters: { mood: "calm" } }));
await raises("deleteAll without ids", "ValidationError", () => client.deleteAll({}));
await refused("getProject", () => client.getProject({ fields: ["custom_instructions"] }));
await refused("updateProject", () => client.updateProject({ customInstructions: "x" }));
await refused("getWebhooks", () => client.getWebhooks({ projectId: "p" }));
await refused("createWebhook", () => client.createWebhook({ name: "n", url: "http://x", projectId: "p", eventTypes: [] }));
await refused("updateWebhook", () => client.updateWebhook({ webhookId: "1", projectId: "p", name: "n", url: "u", eventTypes: [] }));
await refused("deleteWebhook", () => client.deleteWebhook({ webhookId: "1" }));
await refused("generateProfile", () => client.generateProfile({ entityId: userId }));
await refused("getProfileSettings", () => client.getProfileSettings());
await refused("updateProfileSettings", () => client.updateProfileSettings({ enabled: true }));
await refused("sampleProfiles", () => client.sampleProfiles({}));
await refused("getProfileJob", () => client.getProfileJob(unknown));
process.exit(0);
