// Where the nodes of a tree are drawn, without recursion: trees may be thousands of levels deep.

const MOST_NODES = 20_000;

/** Whether `parents` is a tree as the server tells it: parents[0] is -1, every parent comes before its children. */
export function isTree(parents) {
  const fits = (parent, node) => Number.isInteger(parent) && parent < node && parent >= (node ? 0 : -1);
  return Array.isArray(parents) && parents.length > 0 && parents.length <= MOST_NODES && parents.every(fits);
}

/** {x, depth, leaves, levels}: a column for each leaf, nodes over the middle of theirs. */
export function layOut(parents) {
  const count = parents.length;
  const leaves = new Array(count).fill(0);
  for (let node = count - 1; node >= 0; node -= 1) {
    leaves[node] ||= 1;
    if (node) leaves[parents[node]] += leaves[node];
  }
  const begin = new Array(count).fill(0); // where the next child's columns begin
  const x = [leaves[0] / 2];
  const depth = [0];
  for (let node = 1; node < count; node += 1) {
    const parent = parents[node];
    const first = begin[parent];
    begin[parent] += leaves[node];
    begin[node] = first;
    x.push(first + leaves[node] / 2);
    depth.push(depth[parent] + 1);
  }
  return { x, depth, leaves: leaves[0], levels: depth.reduce((most, level) => Math.max(most, level), 0) };
}
