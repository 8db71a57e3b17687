// Loaded into every test process behind tap's own hooks: lets the processes that a test starts be as they are without
// tap. It would otherwise put its loader into each `vdiskfs` and each server, which doubles the time that they take to
// start, and makes those of other users fail, who cannot write tap's notes.

/** Where process-on-spawn keeps what it wrapped, so that every child gets tap's loader. */
globalThis[Symbol.for('process-on-spawn@*:singletonId')]?.unwrap()

const others = (process.env.NODE_OPTIONS ?? '').split(' ').filter((word) => !word.includes('/@tapjs/'))
if (others.join('') === '') delete process.env.NODE_OPTIONS
else process.env.NODE_OPTIONS = others.join(' ')
