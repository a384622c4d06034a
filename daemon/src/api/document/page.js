// Shows the OpenAPI document as a page. Text goes in as text only.
"use strict";

const make = (tag, text, ...children) => {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  element.append(...children);
  return element;
};

const row = (cell, texts) => make("tr", "", ...texts.map((text) => make(cell, text)));

const table = (head, rows) => make("table", "", row("th", head), ...rows.map((texts) => row("td", texts)));

// A schema as one would write it down; references are followed, not into circles.
const shape = (schema, all, seen = []) => {
  if (!schema) return "anything";
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return seen.includes(name) ? name : shape(all[name], all, [...seen, name]);
  }
  const several = schema.oneOf || schema.anyOf;
  if (several) {
    const some = several.filter((one) => one.type !== "null").map((one) => shape(one, all, seen));
    return some.length === 1 ? some[0] : some;
  }
  if (schema.allOf) return Object.assign({}, ...schema.allOf.map((one) => shape(one, all, seen)));
  const types = [].concat(schema.type || []);
  if (types.includes("array")) return [shape(schema.items, all, seen)];
  if (types.includes("object") || schema.properties) {
    const fields = Object.entries(schema.properties || {});
    return Object.fromEntries(fields.map(([name, one]) => [name, shape(one, all, seen)]));
  }
  const text = (schema.description || "").replaceAll("\n", " ");
  return kind(schema) + (text ? `: ${text}` : "");
};

// What a value may be: its type, or the words that there are, and its bounds.
const kind = (schema) => {
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.items) return `${kind(schema.items)}, any number of times`;
  const { minimum, maximum } = schema;
  const bounds = maximum === undefined ? "" : ` ${minimum || 0}–${maximum}`;
  return [].concat(schema.type || []).join(" or ") + bounds;
};

const content = (part, all) =>
  Object.entries((part && part.content) || {}).map(([type, { schema }]) => {
    const text = type === "application/json" ? JSON.stringify(shape(schema, all), null, 2) : "";
    return make("div", "", make("code", type), ...(text ? [make("pre", text)] : []));
  });

const operation = (path, method, about, all) => {
  const verb = make("span", method.toUpperCase());
  verb.className = "method";
  const brief = make("span", about.summary);
  brief.className = "brief";
  const parts = [make("summary", "", verb, make("code", path), brief)];
  if (about.description) parts.push(make("p", about.description));
  const parameters = about.parameters || [];
  if (parameters.length) {
    const rows = parameters.map((p) => [p.name, p.in, p.required ? "required" : "", kind(p.schema || {}), p.description || ""]);
    parts.push(make("h4", "Parameters"), table(["Name", "In", "", "Kind", "Meaning"], rows));
  }
  if (about.requestBody) parts.push(make("h4", "Body"), ...content(about.requestBody, all));
  parts.push(make("h4", "Answers"));
  const answers = Object.entries(about.responses || {}).sort();
  parts.push(table(["Status", "Meaning"], answers.map(([code, one]) => [code, one.description || ""])));
  for (const [code, one] of answers) {
    if (code.startsWith("2")) parts.push(...content(one, all));
  }
  return make("details", "", ...parts);
};

const show = (api) => {
  document.getElementById("about").textContent = `${api.info.description} Version ${api.info.version}.`;
  const subjects = new Map();
  for (const [path, item] of Object.entries(api.paths)) {
    for (const [method, about] of Object.entries(item)) {
      const subject = (about.tags && about.tags[0]) || "Other";
      if (!subjects.has(subject)) subjects.set(subject, []);
      subjects.get(subject).push(operation(path, method, about, (api.components || {}).schemas || {}));
    }
  }
  const main = document.getElementById("operations");
  for (const [subject, operations] of subjects) {
    main.append(make("section", "", make("h2", subject), ...operations));
  }
};

fetch("openapi.json")
  .then((answer) => {
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    return answer.json();
  })
  .then(show)
  .catch((error) => {
    document.getElementById("about").textContent = `The description cannot be read: ${error.message}.`;
  });
