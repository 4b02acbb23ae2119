// Server-sent events over fetch: EventSource cannot post.

/** Yield the data of each event of a response's body. Comments, which keep the connection alive, are passed over. */
export async function* events(body) {
  let data = [];
  for await (const line of lines(body)) {
    if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
    else if (!line && data.length) {
      yield data.join("\n");
      data = [];
    }
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = [];
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const pieces = part.value.split("\n");
      rest.push(pieces[0]);
      for (const piece of pieces.slice(1)) {
        yield rest.join("").replace(/\r$/, "");
        rest = [piece];
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection may have broken already
  }
}
