// What a program that makes its system calls without a C library sees of its ids and of a file.
package main

import (
	"fmt"
	"os"
	"syscall"
)

func main() {
	groups, _ := syscall.Getgroups()
	fmt.Println(os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid(), groups)
	info, err := os.Stat(os.Args[1])
	if err != nil {
		panic(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	fmt.Println(st.Uid, st.Gid)
	fmt.Println(syscall.Setgroups([]int{5}), syscall.Setgid(7), syscall.Setuid(7))
	groups, _ = syscall.Getgroups()
	fmt.Println(os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid(), groups)
}
