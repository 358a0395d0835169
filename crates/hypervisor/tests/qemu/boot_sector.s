# A guest in one sector. Each timer tick (18.2 a second) it prints a counter of four hexadecimal digits on the serial
# port and looks for a key and for the ACPI power button. q and the button power it off, r resets it, others it echoes.
#
# as --32 -o boot_sector.o boot_sector.s && objcopy -O binary boot_sector.o /dev/stdout | xxd -i   (the bytes in lab.rs)
    .code16
    .org 0
start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7c00, %sp
    sti
    mov $0x602, %dx     # enable the ACPI power button's status bit
    mov $0x100, %ax
    out %ax, %dx
    xor %bx, %bx
next:
    mov %bx, %ax
    mov $4, %cx         # four hexadecimal digits
digit:
    rol $4, %ax
    push %ax
    and $15, %al
    cmp $10, %al
    jb small
    add $39, %al
small:
    add $48, %al
    call put
    pop %ax
    loop digit
    mov $10, %al
    call put
    inc %bx
    mov $0x600, %dx     # the power button?
    in %dx, %ax
    test $1, %ah
    jnz off
    mov $0x3fd, %dx     # a key?
    in %dx, %al
    test $1, %al
    jz wait
    mov $0x3f8, %dx
    in %dx, %al
    cmp $113, %al       # q: power off
    je off
    cmp $114, %al       # r: reset
    je reset
    call put            # others: echo
wait:
    hlt                 # until the next timer tick
    jmp next
off:
    mov $0x604, %dx
    mov $0x2000, %ax
    out %ax, %dx
    hlt
reset:
    mov $0xfe, %al
    out %al, $0x64
    hlt
put:
    push %dx
    push %ax
    mov $0x3fd, %dx
busy:
    in %dx, %al
    test $0x20, %al
    jz busy
    pop %ax
    mov $0x3f8, %dx
    out %al, %dx
    pop %dx
    ret
