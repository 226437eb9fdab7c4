// What the scripts share: each method's outcome is one line of JSON.
export const tell = (method, outcome, detail = "") => console.log(JSON.stringify({ method, outcome, detail }));
export const require_ = (met, told) => { if (!met) throw new Error(`not so: ${JSON.stringify(told ?? "")}`.slice(0, 300)); };

export async function works(method, use) {
  try {
    const answer = await use();
    tell(method, "works");
    return answer;
  } catch (error) {
    tell(method, "broken", `${error.name}: ${error.message}`.slice(0, 300));
    return undefined;
  }
}

export async function refused(method, use) {
  try {
    await use();
    tell(method, "broken", "it was not refused");
  } catch (error) {
    const told = `${error.name}: ${error.message}`;
    tell(method, /memsvc does not offer|501/.test(told) ? "refused" : "broken", told.slice(0, 300));
  }
}

export async function raises(method, name, use) {
  try {
    await use();
    tell(method, "broken", "nothing was raised");
  } catch (error) {
    tell(method, error.constructor.name === name || error.name === name ? "works" : "broken", error.constructor.name);
  }
}

export async function eventually(met) {
  for (const end = Date.now() + 30_000; !(await met()); ) {
    require_(Date.now() < end, "not within 30 s");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
