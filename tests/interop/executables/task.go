// As task.sh.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
)

func main() {
	for _, argument := range os.Args[1:] {
		fmt.Printf("<%s>\n", argument)
	}
	size, _ := io.Copy(io.Discard, os.Stdin)
	fmt.Printf("%d\n%s\n", size, os.Getenv("TASK_WORD"))
	status, _ := strconv.Atoi(os.Getenv("TASK_STATUS"))
	os.Exit(status)
}
