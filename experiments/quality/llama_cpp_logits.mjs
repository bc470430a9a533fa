// Writes the logits that llama.cpp has after each of some tokens to a file, f32 (tokens, vocabulary).
// Arguments: the folder that holds node_modules, a GGUF file, the ids as JSON, the type of the
// numbers in llama.cpp's cache (F16, its own choice, or F32), and the file to write.
import {writeFileSync} from "node:fs";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [folder, path, ids, cache, out] = process.argv.slice(2);
const entry = createRequire(`${folder}/package.json`).resolve("node-llama-cpp");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: path, gpuLayers: 0});
const context = await model.createContext({
    contextSize: 128,
    threads: 1,
    flashAttention: false,
    experimentalKvCacheKeyType: cache,
    experimentalKvCacheValueType: cache,
});
const inputs = JSON.parse(ids).map((id) => [id, {generateNext: {logits: true}}]);
const outputs = await context.getSequence().controlledEvaluate(inputs);
const rows = outputs.map(({next}) => {
    const row = new Float32Array(next.logits.size);
    for (const [token, logit] of next.logits) row[token] = logit;
    return Buffer.from(row.buffer);
});
writeFileSync(out, Buffer.concat(rows));
process.exit(0);
