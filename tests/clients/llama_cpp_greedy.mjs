// Prints the tokens that llama.cpp writes after a prompt, the most likely one each time, as JSON.
// Arguments: the folder that holds node_modules, and pairs of (a GGUF file, the prompt's ids as
// JSON, how many tokens); several pairs print one line each.
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [folder, ...tasks] = process.argv.slice(2);
const entry = createRequire(`${folder}/package.json`).resolve("node-llama-cpp");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
for (let i = 0; i < tasks.length; i += 3) {
    const [path, ids, count] = tasks.slice(i, i + 3);
    const model = await llama.loadModel({modelPath: path, gpuLayers: 0});
    const context = await model.createContext({contextSize: 128, threads: 1, flashAttention: false});
    const tokens = [];
    for await (const token of context.getSequence().evaluate(JSON.parse(ids), {
        temperature: 0,
        yieldEogToken: true,
    })) {
        tokens.push(token);
        if (tokens.length === Number(count)) break;
    }
    console.log(JSON.stringify(tokens));
    await context.dispose();
    await model.dispose();
}
process.exit(0);
