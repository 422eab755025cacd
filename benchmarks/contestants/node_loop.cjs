// The loop of the Node driver, as its documentation has it: for await (const change of collection.watch()).
const { EJSON } = require("bson");
const { MongoClient } = require("mongodb");

async function main() {
  const given = EJSON.parse(process.argv[2]);
  const client = new MongoClient(given.uri);
  await client.connect();
  const options = { startAtOperationTime: given.begun };
  if (given.full_document) options.fullDocument = given.full_document;
  const numbers = [];
  let before, cpu;
  const stream = client.db("shop").collection("orders").watch([], options);
  for await (const change of stream) {
    if (!numbers.length) {
      before = process.hrtime.bigint();
      cpu = process.cpuUsage();
    }
    numbers.push(change.fullDocument.number);
    if (numbers.length === given.count) break;
  }
  const seconds = Number(process.hrtime.bigint() - before) / 1e9;
  const used = process.cpuUsage(cpu);
  await stream.close();
  await client.close();
  if (numbers.length !== given.count || numbers.some((number, index) => number !== index)) {
    throw new Error(`${numbers.length} events instead of ${given.count}, or in another order`);
  }
  console.log(JSON.stringify({ rate: given.count / seconds, cpu: (used.user + used.system) / given.count }));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
