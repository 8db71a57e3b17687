/** "Did you mean …": the nearest of the known names. */

/** The number of letters to insert, delete, replace or swap with their neighbour to make one word the other. */
export function editDistance(a: string, b: string): number {
  let before: number[] = []
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const replaced = previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      let best = Math.min(replaced, previous[j]! + 1, row[j - 1]! + 1)
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) best = Math.min(best, before[j - 2]! + 1)
      row.push(best)
    }
    before = previous
    previous = row
  }
  return previous[b.length]!
}

/** The known name that `word` was probably meant to be; undefined where none is near. */
export function nearest(word: string, known: readonly string[]): string | undefined {
  let best: string | undefined
  let least = 1 + Math.floor(word.length / 3)
  for (const name of known) {
    const distance = word.length > 1 && name.startsWith(word) ? 0 : editDistance(word, name)
    if (distance < least || (distance === least && best === undefined)) {
      best = name
      least = distance
    }
  }
  return best
}
