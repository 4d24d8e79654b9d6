// Asks the server; what it refuses becomes an error with its words. With `body` it is a POST that carries the page's secret.
export async function ask(address, body, expected = [], headers = {}) {
  const options = { credentials: "same-origin" };
  if (body !== undefined) {
    const file = body instanceof Blob;
    options.method = "POST";
    options.body = file ? body : JSON.stringify(body);
    options.headers = { "content-type": file ? "application/octet-stream" : "application/json", "x-csrf": document.body.dataset.csrf, ...headers };
  }
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer. Nothing is lost here: repeat when it runs again.");
  }
  if (answer.ok || expected.includes(answer.status)) return answer.json();
  const text = await answer.text();
  let told = text;
  try {
    const found = JSON.parse(text);
    told = found.remedy ? `${found.error} – ${found.remedy}` : found.error;
  } catch { /* plain words */ }
  throw new Error(told);
}

// A name for one decision, so that the same one sent twice is written once.
export function newRequest() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
