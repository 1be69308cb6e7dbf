// Package localpg finds the PostgreSQL server binaries of this machine and runs a private server with them.
// `pawl dev` uses it to be a whole pawl in one command; tests use it when no other server is at hand.
//
// # What it owns
//
// One folder per server:
//
//	<dir>/data        what initdb made, mode 0700
//	<dir>/run         the socket, mode 0700
//	<dir>/server.log  what the server prints; the run before is server.log.1
//	<dir>/lock        held (flock) by the process that runs the server
//
// A server without a folder of its own gets a temporary one, which [Server.Stop] removes. If the process dies
// first, the next temporary server of any process sweeps the folder away: its lock is free.
//
// A socket's path has room for about 100 bytes, and a data folder may lie deeper than that; the socket is then
// placed in a 0700 folder under /tmp whose name is derived from the data folder, so the DSN stays the same.
//
// # Who can reach it
//
// The server listens on no address, only on its socket, and the socket's folder is closed to other users. That
// is why local connections need no password. A caller who opens a port (Settings "listen_addresses") must give
// its roles passwords: over TCP the server asks for one.
//
// PostgreSQL refuses to run as root. When root starts it, it runs as the owner of the folder when that is not
// root, else as user postgres, else as nobody. Only the given folder itself is ever handed over, and only when the
// user cannot enter it. Past a parent folder that the user may not enter, as below root's mktemp -d, Linux lets
// the server keep root's privilege to search folders (CAP_DAC_READ_SEARCH); where that cannot be, the error names
// the folder and the command that opens it.
//
// # Its life
//
//	Start ──→ running ──Stop──→ gone (a temporary folder is removed)
//	            │  ↑
//	       Kill │  │ Restart
//	   or death ↓  │
//	           dead
//
// [Server.Done] tells of a death and [Server.Err] says why. Nothing restarts a dead server by itself: a
// development server that dies is something to be shown.
//
// # When things fail
//
//   - The process that started it is killed: on Linux the kernel tells the server to shut down (PR_SET_PDEATHSIG).
//     Elsewhere it goes on running, without an owner.
//   - A server without an owner, found at the next start on the same folder, is stopped first, then started anew.
//     A server with a live owner is not touched: the start fails and names the owner.
//   - Everything is killed at once: the next start is an ordinary crash recovery. A process id in postmaster.pid
//     that meanwhile belongs to some other program does not block it.
//   - initdb is cut short: it works in a folder of its own that becomes data by a rename, so a half-made data
//     folder is never started.
//   - A terminal's ^C does not reach the server: it has a session of its own, so that pawl can finish its work
//     and stop the server last.
//
// The package imports pgx only to see whether the server answers. It needs a Unix.
package localpg
