// Package docs_test keeps README.md and every page of documentation true: it runs what they tell
// a reader to type, and compares what they show with what is printed.
//
// # What it owns
//
// The pages are README.md, CONTRIBUTING.md, SECURITY.md, CHANGELOG.md, docs/*.md,
// docs/decisions/*.md and the READMEs of the examples. Nothing in them is copied here: the tests
// read the pages themselves.
//
// # What happens to a block
//
// The blocks of a page are run in their order, in a scratch directory that looks like a clone of
// this repository, against a database of the page's own. The first word behind the fence decides:
//
//	sh      is run by one shell for the whole page, so that variables last from block to block
//	sql     is run by one psql session for the whole page
//	yaml    is a definition: pawl workflow validate must accept it, guards included
//	go      is a program: it is compiled within this module and run
//	json    behind sh or sql, is a part of the JSON that was printed
//	text    behind sh, sql or go, is the output, line by line
//
// A block in any other language fails the test, and so does a json or text block that shows the
// output of nothing. A yaml, sql or go block whose first line is a comment that names a file is
// written to that file, and not run by itself: a later block of the page must use the file.
//
// A line of a shell block that starts a service (pawl serve, pawl dev, make run, the program of an
// example) starts the real program and goes on when it serves. A service that is started at
// the address of an earlier one replaces it. The ports that pages name are replaced by free ones,
// and the URLs of databases by that of the page's own.
//
// # Placeholders
//
// In shown output … stands for any text, and a line of … for any lines. A time matches any time. A
// UUID matches any UUID, and from there on stands for it in the page: later blocks may use it.
//
// # Directives
//
// An HTML comment before a block, which readers do not see, says what the page does not:
//
//	<!-- prints: TEXT -->    the output contains TEXT; may be repeated
//	<!-- statuses: N N … --> the statuses of the HTTP answers that curl -i shows, in their order
//	<!-- exits: N -->        the shell block ends with this exit code
//	<!-- raises: SQLSTATE -->the SQL block's last error, or what it begins with
//	<!-- file: NAME -->      the JSON block, which has no comments, is written to this file
//	<!-- schema: NAME -->    the JSON block is valid against this schema of the HTTP contract
//	<!-- faulty -->          the definition is refused
//	<!-- figure -->          the text block is a drawing, not output
//	<!-- database: empty --> the page begins without the schema of pawl
//	<!-- run: sh             the lines up to the end of the comment are run, and not shown; or sql
//
// # When something is wrong
//
// The failure names the page, the line of the block, and what was printed. A block that cannot run
// here is in unrunnable, with its reason.
//
// # What it may import
//
// db/dbtest for databases, db/localpg to find the programs of the server, internal/bounded to start
// programs and to wait, and the contract's parser. The program itself is started as a process.
package docs_test
