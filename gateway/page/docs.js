// Shows /openapi.json, and sends requests as it describes them. Everything is put into the page as text, never as
// HTML: names and descriptions come from models' authors.
"use strict";

const METHODS = ["get", "post", "put", "patch", "delete"];
const SHOWN_CHARACTERS = 200000;

const make = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

// A description's words, with what stands between backticks as code.
const words = (tag, text) => make(tag, {}, ...String(text).split("`")
  .map((part, index) => (index % 2 ? make("code", { textContent: part }) : part)));

let description = {};

const resolved = (schema) => {
  for (let depth = 0; schema && schema.$ref && depth < 20; depth += 1) {
    schema = schema.$ref.split("/").slice(1)
      .reduce((found, name) => (found || {})[name.replaceAll("~1", "/").replaceAll("~0", "~")], description);
  }
  return schema || {};
};

// An example of what a schema takes: small, and of the right form.
const example = (given, depth = 0) => {
  const schema = resolved(given);
  if (depth > 12) return null;
  for (const key of ["example", "default", "const"]) if (key in schema) return schema[key];
  if (schema.examples && schema.examples.length) return schema.examples[0];
  if (schema.enum) return schema.enum[0];
  const choice = (schema.anyOf || schema.oneOf || schema.allOf || [])[0];
  if (choice) return example(choice, depth + 1);
  const type = Array.isArray(schema.type) ? schema.type[0] : schema.type;
  if (type === "array") {
    const length = Math.min(schema.minItems ?? 1, 1024);
    const item = length ? example(schema.items || {}, depth + 1) : null;
    return Array.from({ length }, () => item);
  }
  if (type === "object" || schema.properties) {
    const wanted = new Set(schema.required || []);
    const names = Object.keys(schema.properties || {}).filter((name) => wanted.has(name));
    return Object.fromEntries(names.map((name) => [name, example(schema.properties[name], depth + 1)]));
  }
  if (type === "integer" || type === "number") return Math.max(0, schema.minimum ?? (schema.exclusiveMinimum ?? -1) + 1);
  if (type === "boolean") return false;
  return type === "string" ? "text" : {};
};

// Short arrays of numbers on one line, so that a picture of a thousand numbers stays readable.
const written = (value) => JSON.stringify(value, null, 2)
  .replace(/\[\s*((?:-?[\d.eE+]+|"[^"\n]{0,20}"|true|false|null)(?:,\s*(?:-?[\d.eE+]+|"[^"\n]{0,20}"|true|false|null))*)\s*\]/g,
    (_, items) => `[${items.replace(/\s+/g, " ")}]`);

// What may be left out of a body, which the example therefore lacks.
const optional = (given) => {
  const schema = resolved(given);
  const wanted = new Set(schema.required || []);
  return Object.keys(schema.properties || {}).filter((name) => !wanted.has(name));
};

const target = (path, fields) => {
  const query = new URLSearchParams();
  for (const { parameter, input } of fields) {
    if (parameter.in === "header") continue;
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (input.value !== "") query.set(parameter.name, input.value);
  }
  return query.size ? `${path}?${query}` : path;
};

const headersFor = (body, media, fields = []) => {
  const headers = body === null || body instanceof FormData ? {} : { "Content-Type": media };
  for (const { parameter, input } of fields) {
    if (parameter.in === "header" && input.value !== "") headers[parameter.name] = input.value;
  }
  const key = document.getElementById("key").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  return headers;
};

const curlBody = (body, quoted) => {
  if (body === null) return "";
  if (body instanceof FormData) return [...body].map(([name, file]) => ` -F ${quoted(`${name}=@${file.name}`)}`).join("");
  return body instanceof File ? ` --data-binary ${quoted(`@${body.name}`)}` : ` -d ${quoted(body)}`;
};

const asCurl = (method, url, headers, body) => {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const shown = Object.entries(headers).map(([name, value]) => ` -H ${quoted(`${name}: ${name === "Authorization" ? "Bearer $KEY" : value}`)}`);
  return `curl -X ${method}${shown.join("")}${curlBody(body, quoted)} ${quoted(location.origin + url)}`;
};

const readInto = async (response, place) => {
  const type = response.headers.get("Content-Type") || "";
  if (type.startsWith("image/")) {
    const data = new FileReader();
    data.onload = () => place.replaceWith(make("img", { src: data.result, alt: "The answer" }));
    data.readAsDataURL(await response.blob());
    return;
  }
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    text += decoder.decode(part.value, { stream: true });
    place.textContent = text.slice(-SHOWN_CHARACTERS);
    place.scrollTop = place.scrollHeight;
  }
  if (type.includes("json")) {
    try { text = written(JSON.parse(text)); } catch { /* shown as it came */ }
  }
  place.textContent = text.slice(0, SHOWN_CHARACTERS) || "(no body)";
};

const sendWith = (method, path, fields, bodyOf, mediaOf, out) => {
  let running = null;
  const stop = make("button", { type: "button", textContent: "Stop", hidden: true, onclick: () => running && running.abort() });
  const send = make("button", { type: "button", className: "send", textContent: "Send" });
  const copy = make("button", { type: "button", textContent: "Copy as curl" });
  const asked = () => {
    const body = bodyOf();
    const url = target(path, fields);
    return { url, body, headers: headersFor(body, mediaOf(body), fields) };
  };
  copy.onclick = async () => {
    const { url, body, headers } = asked();
    const text = asCurl(method, url, headers, body);
    try { await navigator.clipboard.writeText(text); } catch { /* shown below all the same */ }
    out.replaceChildren(make("pre", { textContent: text }));
  };
  send.onclick = async () => {
    const { url, body, headers } = asked();
    const place = make("pre", { textContent: "…" });
    const status = make("p", { textContent: `${method} ${url}` });
    out.replaceChildren(status, place);
    running = new AbortController();
    stop.hidden = false;
    const began = performance.now();
    try {
      const response = await fetch(url, { method, headers, body, signal: running.signal });
      const took = () => `${Math.round(performance.now() - began)} ms`;
      status.className = response.ok ? "good" : "bad";
      const route = response.headers.get("Mesh-Route");
      status.textContent = `${response.status} ${response.statusText} · ${took()}${route ? ` · ${route}` : ""}`;
      await readInto(response, place);
    } catch (error) {
      status.className = "bad";
      if (error.name === "AbortError") status.textContent += " · stopped";
      else { status.textContent = "The gateway cannot be reached."; place.textContent = String(error); }
    } finally {
      stop.hidden = true;
    }
  };
  return make("div", { className: "buttons" }, send, stop, copy);
};

// What a body is made of: a text of JSON, or files, for each media type that is taken.
const bodyFields = (operation) => {
  const content = (operation.requestBody || {}).content || {};
  const kinds = Object.keys(content);
  if (!kinds.length) return { parts: [], body: () => null, media: () => "" };
  const choice = make("select", { ariaLabel: "Media type" }, ...kinds.map((kind) => make("option", { textContent: kind })));
  const place = make("div", { className: "inside" });
  let body = () => null;
  const change = () => {
    const kind = choice.value;
    const schema = content[kind].schema || {};
    if (kind.includes("json")) {
      const area = make("textarea", { spellcheck: false, ariaLabel: "Body" });
      area.value = written(example(schema));
      const rest = optional(schema);
      const told = rest.length ? [words("small", `May also have: ${rest.map((name) => `\`${name}\``).join(", ")}`)] : [];
      place.replaceChildren(area, ...told);
      body = () => (area.value.trim() || operation.requestBody.required ? area.value : null);
      return;
    }
    const names = kind === "multipart/form-data" ? Object.keys(resolved(schema).properties || { file: {} }) : [""];
    const inputs = names.map((name) => ({ name, input: make("input", { type: "file", ariaLabel: name || "File" }) }));
    place.replaceChildren(...inputs.map(({ name, input }) => make("label", {}, `${name || "File"} `, input)));
    body = () => {
      if (kind !== "multipart/form-data") return inputs[0].input.files[0] || "";
      const form = new FormData();
      for (const { name, input } of inputs) if (input.files[0]) form.append(name, input.files[0]);
      return form;
    };
  };
  choice.onchange = change;
  change();
  const media = (sent) => (sent instanceof File && choice.value.includes("*") ? sent.type || "application/octet-stream" : choice.value);
  return { parts: [make("label", {}, "Body, ", choice), place], body: () => body(), media };
};

const inside = (method, path, operation) => {
  const parameters = operation.parameters || [];
  const fields = parameters.map((parameter) => ({ parameter, input: make("input", { autocomplete: "off", ariaLabel: parameter.name }) }));
  const table = make("div", { className: "fields" });
  for (const { parameter, input } of fields) {
    table.append(make("code", { textContent: parameter.name + (parameter.required ? " *" : "") }), input);
    if (parameter.description) table.append(words("small", parameter.description));
  }
  const sent = bodyFields(operation);
  const out = make("div", { className: "inside" });
  const parts = [];
  if (operation.description) parts.push(words("p", operation.description));
  if (fields.length) parts.push(table);
  parts.push(...sent.parts, sendWith(method.toUpperCase(), path, fields, sent.body, sent.media, out), out);
  const shown = make("details", {}, make("summary", { textContent: "Description" }));
  shown.ontoggle = () => {
    if (shown.open && shown.children.length === 1) shown.append(make("pre", { textContent: JSON.stringify(operation, null, 2) }));
  };
  parts.push(shown);
  return make("div", { className: "inside" }, ...parts);
};

const row = (method, path, operation) => {
  const name = method.toUpperCase();
  const made = make("details", {}, make("summary", {},
    make("span", { className: `method ${name}`, textContent: name }),
    make("span", { className: "path", textContent: path }),
    make("span", { className: "words", textContent: operation.summary || "" }),
    make("span", { className: "scope", textContent: operation["x-meshnode-scope"] || "" })));
  made.dataset.words = `${name} ${path} ${operation.summary || ""}`.toLowerCase();
  made.ontoggle = () => {
    if (made.open && made.children.length === 1) made.append(inside(method, path, operation));
  };
  return made;
};

const show = () => {
  document.getElementById("version").textContent = description.info.version;
  const groups = new Map((description.tags || []).map(({ name }) => [name, []]));
  for (const [path, item] of Object.entries(description.paths)) {
    for (const method of METHODS) {
      const operation = item[method];
      if (!operation) continue;
      const tag = (operation.tags || ["Others"])[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(row(method, path, operation));
    }
  }
  const sections = [...groups].filter(([, rows]) => rows.length)
    .map(([name, rows]) => make("section", {}, make("h2", { textContent: name }), ...rows));
  document.getElementById("groups").replaceChildren(words("p", description.info.description), ...sections);
};

const find = () => {
  const words = document.getElementById("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const section of document.querySelectorAll("section")) {
    let any = false;
    for (const each of section.querySelectorAll(":scope > details")) {
      each.hidden = !words.every((word) => each.dataset.words.includes(word));
      any ||= !each.hidden;
    }
    section.hidden = !any;
  }
};

const tell = (text) => document.getElementById("groups").replaceChildren(make("p", { id: "state", textContent: text }));

// Read anew when the key changes: where a key is needed, the description needs it, too.
let reading = 0;
const read = async () => {
  const mine = reading += 1;
  try {
    const response = await fetch("/openapi.json", { headers: headersFor(null, "") });
    const found = await response.json();
    if (mine !== reading) return;
    if (response.status === 401) {
      tell(`Type an API key above, such as \`meshnode keys create NAME\` makes. The gateway says: ${found.error}`);
      return;
    }
    if (!response.ok) throw new Error(found.error);
    description = found;
    show();
    find();
  } catch (error) {
    if (mine === reading) tell(`The description cannot be read: ${error.message}`);
  }
};

document.getElementById("find").oninput = find;
document.getElementById("key").onchange = read;
document.getElementById("bar").onsubmit = (event) => { event.preventDefault(); read(); };
read();
