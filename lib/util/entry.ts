/**
 * Where the code of a thread or process lies that starts at a module of its own. The package has its modules joined into
 * few files, which load faster; the ones that something starts at keep their names. This module is one level below them
 * all, as are the joined files.
 */

/** The module `path`, relative to lib/, such as `mount/worker.js`. */
export function entryPoint(path: string): URL {
  return new URL(`../${path}`, import.meta.url)
}
