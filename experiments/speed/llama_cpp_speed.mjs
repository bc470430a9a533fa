// Answers each line of stdin, {"path", "ids", "count"}, with a line of the seconds that llama.cpp
// took for each token after the first, in JSON. Arguments: the folder that holds node_modules, and
// the number of threads. Models stay loaded.
import {createRequire} from "node:module";
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const [folder, threads] = process.argv.slice(2);
const entry = createRequire(`${folder}/package.json`).resolve("node-llama-cpp");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry));
const llama = await getLlama({
    gpu: false,
    build: "never",
    logLevel: LlamaLogLevel.error,
    maxThreads: Number(threads),
});
const contexts = {};
for await (const line of createInterface({input: process.stdin})) {
    const {path, ids, count} = JSON.parse(line);
    if (!(path in contexts)) {
        const model = await llama.loadModel({modelPath: path, gpuLayers: 0});
        const options = {contextSize: 256, threads: Number(threads), flashAttention: false};
        const context = await model.createContext(options);
        contexts[path] = context.getSequence();
    }
    const sequence = contexts[path];
    await sequence.clearHistory();
    const seconds = [], tokens = [];
    let started = null;
    let last = performance.now();
    for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        const now = performance.now();
        seconds.push((now - last) / 1000);
        last = now;
        tokens.push(token);
        started ??= process.cpuUsage();
        if (tokens.length === count) break;
    }
    const {user, system} = process.cpuUsage(started);
    const cpu_seconds = (user + system) / 1e6 / (tokens.length - 1);
    console.log(JSON.stringify({seconds: seconds.slice(1), tokens, cpu_seconds}));
}
process.exit(0);
